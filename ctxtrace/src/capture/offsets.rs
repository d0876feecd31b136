//! Where the fields of the running kernel's `task_struct` lie.
//!
//! The BPF programs read fields at offsets that are constants to the verifier and unknown to the compiler: they are looked
//! up in the kernel's own type information (BTF) and written into the program's read-only data before it is loaded. A field
//! that has changed its name or place between kernels is found by name, never by kernel version.

use std::path::Path;

use btf::btf::{Btf, Struct, Type};

use crate::error::{Error, Result};

/// The running kernel's type information.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// The constants of the BPF object that describe the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offsets {
    constants: Vec<(&'static str, u32)>,
}

impl Offsets {
    /// Reads the running kernel's BTF.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or lacks what is needed.
    pub fn from_running_kernel() -> Result<Self> {
        // Checked apart, to tell a kernel without BTF from one whose BTF is odd.
        std::fs::File::open(BTF_PATH).map_err(|source| Error::NoBtf { path: BTF_PATH, source })?;
        Self::from_file(Path::new(BTF_PATH))
    }

    fn from_file(path: &Path) -> Result<Self> {
        let btf = Btf::from_file(path).map_err(|error| Error::BtfLacks {
            what: format!("a readable type table ({error})"),
        })?;
        let task = struct_named(&btf, "task_struct")?;
        let constants = vec![
            ("OFFSET_PID", offset_of(task, &["pid"])?),
            ("OFFSET_TGID", offset_of(task, &["tgid"])?),
            // Renamed in Linux 5.14, where `state` also became an `unsigned int`; the low half of the older `long` serves.
            ("OFFSET_STATE", offset_of(task, &["__state", "state"])?),
            ("OFFSET_NVCSW", offset_of(task, &["nvcsw"])?),
            ("OFFSET_NIVCSW", offset_of(task, &["nivcsw"])?),
            ("OFFSET_COMM", offset_of(task, &["comm"])?),
            // Renamed in Linux 5.5.
            (
                "OFFSET_START_BOOTTIME",
                offset_of(task, &["start_boottime", "real_start_time"])?,
            ),
            ("OFFSET_GROUP_LEADER", offset_of(task, &["group_leader"])?),
            ("HAS_PREV_STATE_ARG", u32::from(switch_passes_prev_state(&btf)?)),
        ];
        Ok(Self { constants })
    }

    /// Name and value of each constant.
    pub fn constants(&self) -> impl Iterator<Item = (&'static str, &u32)> {
        self.constants.iter().map(|(name, value)| (*name, value))
    }
}

fn lacks(what: impl Into<String>) -> Error {
    Error::BtfLacks { what: what.into() }
}

fn struct_named<'a>(btf: &'a Btf, name: &str) -> Result<&'a Struct> {
    btf.get_types()
        .iter()
        .find_map(|ty| match &ty.base_type {
            Type::Struct(fields) if ty.num_refs == 0 && ty.name.as_deref() == Some(name) => Some(fields),
            _ => None,
        })
        .ok_or_else(|| lacks(format!("struct {name}")))
}

/// Offset in bytes of the first of `names` that the structure has.
fn offset_of(fields: &Struct, names: &[&str]) -> Result<u32> {
    names
        .iter()
        .find_map(|&name| {
            let member = fields
                .members
                .iter()
                .find(|member| member.name.as_deref() == Some(name))?;
            Some(member.offset / 8)
        })
        .ok_or_else(|| lacks(format!("task_struct.{}", names.join(" or task_struct."))))
}

/// Whether `sched_switch` hands over `prev_state`: its BTF prototype then has five parameters, the first one being the
/// tracepoint's private data.
fn switch_passes_prev_state(btf: &Btf) -> Result<bool> {
    const NAME: &str = "btf_trace_sched_switch";
    btf.get_types()
        .iter()
        .find_map(|ty| match &ty.base_type {
            Type::FunctionProto(proto) if ty.name.as_deref() == Some(NAME) => Some(proto.params.len() >= 5),
            _ => None,
        })
        .ok_or_else(|| lacks("the tracepoint sched_switch"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use btf::btf::StructMember;

    fn fields(members: &[(&str, u32)]) -> Struct {
        Struct {
            members: members
                .iter()
                .map(|&(name, bits)| StructMember {
                    name: Some(name.to_owned()),
                    offset: bits,
                    ..StructMember::default()
                })
                .collect(),
        }
    }

    #[test]
    fn a_field_is_found_under_its_older_name() {
        let new = fields(&[("flags", 0), ("__state", 192)]);
        let old = fields(&[("state", 128)]);
        assert_eq!(offset_of(&new, &["__state", "state"]).ok(), Some(24));
        assert_eq!(offset_of(&old, &["__state", "state"]).ok(), Some(16));
    }

    #[test]
    fn a_missing_field_is_named() {
        let error = offset_of(&fields(&[]), &["nvcsw"]).expect_err("missing");
        assert!(error.to_string().contains("task_struct.nvcsw"), "{error}");
    }
}
