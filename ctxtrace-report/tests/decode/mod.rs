//! Decodes protobuf outputs with another implementation than the one that writes them, and with the formats' own `.proto` files.
//! The unit tests of the library and the privileged tests both include this module.

#![allow(
    dead_code,
    reason = "the two test executables that include this module use different parts of it"
)]

pub(crate) mod perfetto;
pub(crate) mod pprof;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use protobuf::MessageDyn;
use protobuf::reflect::{FileDescriptor, MessageRef, ReflectValueRef};

/// Decodes bytes as the message with this name in one of the `.proto` files in this folder.
///
/// Panics if the bytes contain a field that the file does not define; a field with a wrong number or type counts as such.
fn decode(file: &str, message: &str, bytes: &[u8]) -> Box<dyn MessageDyn> {
    static PARSED: Mutex<BTreeMap<String, FileDescriptor>> = Mutex::new(BTreeMap::new());
    let mut parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
    let descriptor = parsed
        .entry(file.to_owned())
        .or_insert_with(|| descriptor(file))
        .clone();
    drop(parsed);
    let message = descriptor
        .message_by_package_relative_name(message)
        .expect("the file defines the message");
    let mut decoded = message.new_instance();
    decoded.merge_from_bytes_dyn(bytes).expect("well-formed protobuf");
    assert_known(&*decoded);
    decoded
}

fn descriptor(file: &str) -> FileDescriptor {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ctxtrace-report/tests/decode");
    let mut parsed = protobuf_parse::Parser::new()
        .pure()
        .include(&folder)
        .input(folder.join(file))
        .file_descriptor_set()
        .expect("a valid .proto file");
    FileDescriptor::new_dynamic(parsed.file.remove(0), &[]).expect("a .proto file without imports")
}

fn assert_known(message: &dyn MessageDyn) {
    let unknown = message.special_fields_dyn().unknown_fields();
    assert!(
        unknown.iter().next().is_none(),
        "unknown fields {unknown:?} in {}",
        message.descriptor_dyn().full_name()
    );
    for field in message.descriptor_dyn().fields() {
        if field.is_repeated() {
            for value in field.get_repeated(message) {
                if let ReflectValueRef::Message(inner) = value {
                    assert_known(&*inner);
                }
            }
        } else if let Some(ReflectValueRef::Message(inner)) = field.get_singular(message) {
            assert_known(&*inner);
        }
    }
}

fn integer(value: &ReflectValueRef<'_>) -> i64 {
    match *value {
        ReflectValueRef::U32(number) => i64::from(number),
        ReflectValueRef::U64(number) => number as i64,
        ReflectValueRef::I32(number) => i64::from(number),
        ReflectValueRef::I64(number) => number,
        ReflectValueRef::Bool(yes) => i64::from(yes),
        ReflectValueRef::Enum(_, number) => i64::from(number),
        ref other => panic!("{other:?} is not a number"),
    }
}

/// Returns the number in a field, if the field is set.
fn number(message: &dyn MessageDyn, name: &str) -> Option<i64> {
    let field = field(message, name);
    field.get_singular(message).map(|value| integer(&value))
}

/// Returns the numbers in a repeated field.
fn numbers(message: &dyn MessageDyn, name: &str) -> Vec<i64> {
    let values = field(message, name).get_repeated(message);
    values.into_iter().map(|value| integer(&value)).collect()
}

/// Returns the text in a field, if the field is set.
fn text(message: &dyn MessageDyn, name: &str) -> Option<String> {
    match field(message, name).get_singular(message)? {
        ReflectValueRef::String(text) => Some(text.to_owned()),
        ReflectValueRef::Bytes(bytes) => Some(String::from_utf8(bytes.to_vec()).expect("valid UTF-8")),
        other => panic!("{other:?} is not a text"),
    }
}

/// Returns the message in a field, if the field is set.
fn child<'a>(message: &'a dyn MessageDyn, name: &str) -> Option<MessageRef<'a>> {
    match field(message, name).get_singular(message)? {
        ReflectValueRef::Message(inner) => Some(inner),
        other => panic!("{other:?} is not a message"),
    }
}

/// Returns the messages in a repeated field.
fn children<'a>(message: &'a dyn MessageDyn, name: &str) -> Vec<MessageRef<'a>> {
    let values = field(message, name).get_repeated(message);
    values
        .into_iter()
        .map(|value| match value {
            ReflectValueRef::Message(inner) => inner,
            other => panic!("{other:?} is not a message"),
        })
        .collect()
}

fn field(message: &dyn MessageDyn, name: &str) -> protobuf::reflect::FieldDescriptor {
    let descriptor = message.descriptor_dyn();
    descriptor
        .field_by_name(name)
        .unwrap_or_else(|| panic!("{} has no field {name}", descriptor.full_name()))
}
