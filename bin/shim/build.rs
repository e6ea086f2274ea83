//! Generates the messages of `proto/pod.proto`.
use ttrpc_codegen::{Codegen, ProtobufCustomize};

fn main() {
    println!("cargo:rerun-if-changed=proto/pod.proto");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    Codegen::new()
        .out_dir(&out)
        .input("proto/pod.proto")
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .run()
        .expect("generate code from proto/pod.proto");
    std::fs::write(format!("{out}/index.rs"), "pub mod pod;\n").expect("write index.rs");
}
