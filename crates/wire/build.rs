//! Generates the messages and the service stubs from `proto/agent.proto`.
use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() {
    println!("cargo:rerun-if-changed=proto/agent.proto");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    Codegen::new()
        .out_dir(&out)
        .input("proto/agent.proto")
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .customize(Customize {
            async_all: true,
            ..Default::default()
        })
        .run()
        .expect("generate code from proto/agent.proto");
    // The generator leaves the service out of its own index.
    std::fs::write(format!("{out}/index.rs"), "pub mod agent;\npub mod agent_ttrpc;\n").expect("write index.rs");
}
