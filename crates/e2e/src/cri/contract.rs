//! The contract's messages, by name: JSON on the tests' side, protobuf on the wire. Names of fields are those of the
//! contract; numbers of 64 bits come as texts, as protobuf's JSON has them.

use std::path::Path;
use std::sync::OnceLock;

use protobuf::reflect::{FileDescriptor, MessageDescriptor};
use protobuf_json_mapping::PrintOptions;
use serde_json::Value;

/// A call of the contract.
#[derive(Debug)]
pub struct Method {
    /// `/package.Service/Method`.
    pub path: String,
    request: MessageDescriptor,
    response: MessageDescriptor,
}

impl Method {
    /// The method of this name, whichever service has it.
    ///
    /// # Panics
    /// When the contract has none.
    #[track_caller]
    pub fn named(name: &str) -> Self {
        let contract = contract();
        let methods = contract.services().flat_map(|service| {
            let service_name = service.proto().name().to_owned();
            service
                .methods()
                .map(move |method| (service_name.clone(), method))
                .collect::<Vec<_>>()
        });
        let found = methods.into_iter().find(|(_, method)| method.proto().name() == name);
        let (service, method) = found.unwrap_or_else(|| panic!("api.proto has no method {name}"));
        Self {
            path: format!("/{}.{service}/{name}", contract.package()),
            request: method.input_type(),
            response: method.output_type(),
        }
    }

    /// A request on the wire.
    ///
    /// # Panics
    /// When it is not as the contract wants it.
    #[track_caller]
    pub fn request(&self, value: &Value) -> Vec<u8> {
        let mut message = self.request.new_instance();
        protobuf_json_mapping::merge_from_str(&mut *message, &value.to_string())
            .unwrap_or_else(|error| panic!("{} does not fit: {error}\n{value:#}", self.request));
        message.write_to_bytes_dyn().expect("a message in memory")
    }

    /// A response from the wire; what is not set is there with its default, but for messages.
    ///
    /// # Panics
    /// When it is not as the contract wants it.
    #[track_caller]
    pub fn response(&self, bytes: &[u8]) -> Value {
        let mut message = self.response.new_instance();
        let merged = message.merge_from_bytes_dyn(bytes);
        merged.unwrap_or_else(|error| panic!("{} does not fit: {error}", self.response));
        let options = PrintOptions {
            proto_field_name: true,
            always_output_default_values: true,
            ..PrintOptions::default()
        };
        let text = protobuf_json_mapping::print_to_string_with_options(&*message, &options);
        serde_json::from_str(&text.expect("printable")).expect("JSON")
    }
}

fn contract() -> &'static FileDescriptor {
    static CONTRACT: OnceLock<FileDescriptor> = OnceLock::new();
    CONTRACT.get_or_init(|| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cri");
        let mut parser = protobuf_parse::Parser::new();
        parser.pure().include(&dir).input(dir.join("api.proto"));
        let mut files = parser.file_descriptor_set().expect("api.proto").file;
        FileDescriptor::new_dynamic(files.remove(0), &[]).expect("api.proto")
    })
}

#[cfg(test)]
mod tests {
    use super::Method;
    use serde_json::json;

    #[test]
    fn a_message_goes_there_and_back() {
        let method = Method::named("PortForward");
        assert_eq!(method.path, "/runtime.v1.RuntimeService/PortForward");
        let bytes = method.request(&json!({"pod_sandbox_id": "a", "port": [80]}));
        // Not packed, as parsers take it, too.
        assert_eq!(bytes, [0x0a, 1, b'a', 0x10, 80]);
        assert_eq!(method.response(&[0x0a, 1, b'u']), json!({"url": "u"}));
        assert_eq!(method.response(&[]), json!({"url": ""}));
    }

    #[test]
    fn both_services_are_known() {
        assert_eq!(
            Method::named("ImageStatus").path,
            "/runtime.v1.ImageService/ImageStatus"
        );
    }
}
