//! The offsets of fields in the running kernel's structures, mainly in `task_struct`.
//!
//! The BPF programs read fields at offsets that are constants to the verifier but unknown to the compiler: this module finds them
//! in the kernel's own type information (BTF), and the loader writes them into the programs' read-only data. A field whose name
//! or place differs between kernels is found by name, never by kernel version.

use std::fs;
use std::path::Path;

use super::btf::{Btf, Type, TypeKind};
use crate::error::{Error, Result};

/// Path of the running kernel's type information.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// The constants of the BPF object that describe the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offsets {
    constants: Vec<(&'static str, u32)>,
    exit_comes_in_time: bool,
    has_throttled: bool,
    has_credentials: bool,
}

impl Offsets {
    /// Reads the running kernel's BTF.
    ///
    /// # Errors
    ///
    /// If the BTF cannot be read, or lacks a type that is needed.
    pub fn from_running_kernel() -> Result<Self> {
        // Opened separately, to distinguish a kernel without BTF from a kernel whose BTF is invalid.
        fs::File::open(BTF_PATH).map_err(|source| Error::NoBtf { path: BTF_PATH, source })?;
        Self::from_file(Path::new(BTF_PATH))
    }

    fn from_file(path: &Path) -> Result<Self> {
        let btf = Btf::from_file(path).map_err(|error| Error::BtfLacks {
            what: format!("a readable type table ({error})"),
        })?;
        let task = struct_named(&btf, "task_struct")?;
        let nested = |outer: &str, inner_struct: &str, inner: &[&str]| {
            let inner = struct_named(&btf, inner_struct).and_then(|fields| offset_of(fields, inner_struct, inner));
            Ok::<u32, Error>(offset_of(task, "task_struct", &[outer])? + inner?)
        };
        let registers = struct_named(&btf, "pt_regs")?;
        let helpers = Helpers::from_btf(&btf);
        let mut constants = vec![
            ("OFFSET_PID", offset_of(task, "task_struct", &["pid"])?),
            ("OFFSET_TGID", offset_of(task, "task_struct", &["tgid"])?),
            // Renamed in Linux 5.14, where `state` also became an `unsigned int`; reading the low half of the older `long` works,
            // too.
            ("OFFSET_STATE", offset_of(task, "task_struct", &["__state", "state"])?),
            ("OFFSET_NVCSW", offset_of(task, "task_struct", &["nvcsw"])?),
            ("OFFSET_NIVCSW", offset_of(task, "task_struct", &["nivcsw"])?),
            ("OFFSET_COMM", offset_of(task, "task_struct", &["comm"])?),
            // Renamed in Linux 5.5.
            (
                "OFFSET_START_BOOTTIME",
                offset_of(task, "task_struct", &["start_boottime", "real_start_time"])?,
            ),
            (
                "OFFSET_GROUP_LEADER",
                offset_of(task, "task_struct", &["group_leader"])?,
            ),
            ("OFFSET_MM", offset_of(task, "task_struct", &["mm"])?),
            ("OFFSET_FLAGS", offset_of(task, "task_struct", &["flags"])?),
            ("OFFSET_FSBASE", nested("thread", "thread_struct", &["fsbase"])?),
            (
                "OFFSET_THREAD_STATUS",
                nested("thread_info", "thread_info", &["status"])?,
            ),
            ("OFFSET_ORIG_AX", offset_of(registers, "pt_regs", &["orig_ax"])?),
            ("OFFSET_CS", offset_of(registers, "pt_regs", &["cs"])?),
            ("OFFSET_IP", offset_of(registers, "pt_regs", &["ip"])?),
            ("OFFSET_BP", offset_of(registers, "pt_regs", &["bp"])?),
            // `ss` is the last field. The structure's own size is not used, because it is wrong for structures with bit fields.
            ("SIZE_OF_PT_REGS", offset_of(registers, "pt_regs", &["ss"])? + 8),
            ("OFFSET_STACK", offset_of(task, "task_struct", &["stack"])?),
            ("HAS_TASK_PT_REGS", u32::from(helpers.has("task_pt_regs"))),
            ("HAS_CURRENT_TASK_BTF", u32::from(helpers.has("get_current_task_btf"))),
            ("HAS_PREV_STATE_ARG", u32::from(parameters(&btf, "sched_switch")? >= 5)),
        ];
        let has_throttled = bit_offset_of(task, "throttled").is_some();
        constants.extend(throttled(task));
        constants.extend(frozen(&btf, task));
        // A kernel without these fields can be traced, but the wakers of its wakeups remain unknown.
        if let Ok(per_cpu) = per_cpu(&btf, task) {
            constants.extend(per_cpu);
        }
        // Needed only by a tracer that may not trace the processes of every user.
        let credentials = credentials(&btf, task);
        let has_credentials = credentials.is_ok();
        constants.extend(credentials.into_iter().flatten());
        Ok(Self {
            constants,
            has_credentials,
            exit_comes_in_time: parameters(&btf, "sched_process_exit")? >= 3,
            has_throttled,
        })
    }

    /// Whether the kernel marks a thread that the CPU quota of its cgroup keeps off the CPU.
    #[must_use]
    pub fn has_throttled(&self) -> bool {
        self.has_throttled
    }

    /// Whether the fields are known by which the kernel decides who may trace a process.
    #[must_use]
    pub fn has_credentials(&self) -> bool {
        self.has_credentials
    }

    /// Whether `sched_process_exit` comes while the thread still has its memory.
    #[must_use]
    pub fn exit_comes_in_time(&self) -> bool {
        self.exit_comes_in_time
    }

    /// Whether a wakeup made by a thread can be distinguished from one made by an interrupt.
    #[must_use]
    pub fn can_identify_interrupts(&self) -> bool {
        self.constants.iter().any(|&(name, _)| name == "PER_CPU_KNOWN")
    }

    /// The name and value of each constant.
    pub fn constants(&self) -> impl Iterator<Item = (&'static str, &u32)> {
        self.constants.iter().map(|(name, value)| (*name, value))
    }
}

fn lacks(what: impl Into<String>) -> Error {
    Error::BtfLacks { what: what.into() }
}

fn struct_named<'a>(btf: &'a Btf, name: &str) -> Result<Type<'a>> {
    btf.named(TypeKind::Struct, name)
        .ok_or_else(|| lacks(format!("struct {name}")))
}

/// Offset in bytes of the first of `names` that the structure has.
fn offset_of(fields: Type<'_>, structure: &str, names: &[&str]) -> Result<u32> {
    names
        .iter()
        .find_map(|&name| bit_offset(fields, name, MAX_NESTING))
        .map(|bits| bits / 8)
        .ok_or_else(|| lacks(format!("{structure}.{}", names.join(" or "))))
}

/// Maximum nesting depth of anonymous structures and unions that are searched. The kernel has a few levels; the limit ends a
/// cycle.
const MAX_NESTING: u32 = 16;

/// Offset in bits of a member. As in C, the members of an anonymous structure or union count as members of the outer one;
/// `nesting` is the number of further levels of these that are searched.
fn bit_offset(fields: Type<'_>, name: &str, nesting: u32) -> Option<u32> {
    fields.members().find_map(|member| {
        if member.name == name {
            return Some(member.bit_offset);
        }
        if !member.name.is_empty() {
            return None;
        }
        let inner = fields
            .other(member.type_id)?
            .resolve(&[TypeKind::Struct, TypeKind::Union], false)?;
        member
            .bit_offset
            .checked_add(bit_offset(inner, name, nesting.checked_sub(1)?)?)
    })
}

/// Offset in bits of a member that only some kernels have.
fn bit_offset_of(fields: Type<'_>, name: &str) -> Option<u32> {
    let member = fields.members().find(|member| member.name == name)?;
    Some(member.bit_offset)
}

/// The offsets of the fields by which the kernel decides who may trace a process; see `rights.rs` on the BPF side.
fn credentials(btf: &Btf, task: Type<'_>) -> Result<Vec<(&'static str, u32)>> {
    let field = |constant, structure: &str, name: &str| {
        let offset = offset_of(struct_named(btf, structure)?, structure, &[name])?;
        Ok::<_, Error>((constant, offset))
    };
    Ok(vec![
        ("OFFSET_REAL_CRED", offset_of(task, "task_struct", &["real_cred"])?),
        field("OFFSET_CRED_UID", "cred", "uid")?,
        field("OFFSET_CRED_EUID", "cred", "euid")?,
        field("OFFSET_CRED_SUID", "cred", "suid")?,
        field("OFFSET_CRED_GID", "cred", "gid")?,
        field("OFFSET_CRED_EGID", "cred", "egid")?,
        field("OFFSET_CRED_SGID", "cred", "sgid")?,
        field("OFFSET_CRED_CAP_PERMITTED", "cred", "cap_permitted")?,
        field("OFFSET_CRED_USER_NS", "cred", "user_ns")?,
        field("OFFSET_MM_FLAGS", "mm_struct", "flags")?,
        field("OFFSET_MM_USER_NS", "mm_struct", "user_ns")?,
        field("OFFSET_USER_NS_PARENT", "user_namespace", "parent")?,
        field("OFFSET_USER_NS_LEVEL", "user_namespace", "level")?,
        field("OFFSET_USER_NS_OWNER", "user_namespace", "owner")?,
    ])
}

/// Where `task_struct` says that a CPU quota keeps the thread off its CPU. Since Linux 6.18 the kernel takes a throttled thread
/// off at its return to user mode and marks it. Before, it took the whole group off the run queue, and no field of a thread
/// showed it.
fn throttled(task: Type<'_>) -> Vec<(&'static str, u32)> {
    let offset = bit_offset_of(task, "throttled").map(|bits| bits / 8);
    vec![
        ("OFFSET_THROTTLED", offset.unwrap_or(0)),
        ("HAS_THROTTLED", u32::from(offset.is_some())),
    ]
}

/// The fields that distinguish a thread kept off the CPU by the freezer from a sleeping one.
fn frozen(btf: &Btf, task: Type<'_>) -> Vec<(&'static str, u32)> {
    /// `PF_FROZEN` (kernel: `include/linux/sched.h`) up to Linux 6.0. It is a macro, so BTF does not have it.
    const PF_FROZEN: u32 = 0x0001_0000;
    // The freezer of cgroup v2 sets a bit field. A kernel without the bit field has no such freezer.
    let v2 = bit_offset_of(task, "frozen").zip(bit_offset_of(task, "jobctl"));
    let (frozen, jobctl) = v2.unwrap_or_default();
    // The flag was removed when the freezer got a task state of its own, which this function sets.
    let has_state = has_function(btf, "__set_task_frozen");
    vec![
        ("OFFSET_FROZEN", frozen / 8),
        ("FROZEN_BIT", if v2.is_some() { 1 << (frozen % 8) } else { 0 }),
        ("OFFSET_JOBCTL", jobctl / 8),
        ("FROZEN_FLAG", if has_state { 0 } else { PF_FROZEN }),
    ]
}

/// Whether the kernel has a function with this name.
fn has_function(btf: &Btf, name: &str) -> bool {
    btf.named(TypeKind::Function, name).is_some()
}

/// What the kernel has according to its type information, for users who may not load programs. Every user may read it.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// Names of `enum bpf_func_id`.
    pub helpers: Vec<String>,
    /// Names of `enum bpf_map_type`.
    pub maps: Vec<String>,
    /// Names of `enum bpf_prog_type`.
    pub programs: Vec<String>,
    /// Tracepoints to which BPF programs can be attached.
    pub tracepoints: Vec<String>,
}

impl Description {
    /// The description of the running kernel, if its BTF can be read.
    #[must_use]
    pub fn of_running_kernel() -> Option<Self> {
        let btf = Btf::from_file(Path::new(BTF_PATH)).ok()?;
        let of = |name| enumerators(&btf, name).map(str::to_owned).collect();
        Some(Self {
            helpers: of("bpf_func_id"),
            maps: of("bpf_map_type"),
            programs: of("bpf_prog_type"),
            tracepoints: btf
                .types(TypeKind::Typedef)
                .filter_map(|ty| ty.name().strip_prefix(TRACEPOINT_PREFIX))
                .map(str::to_owned)
                .collect(),
        })
    }
}

/// The prefix of a tracepoint's name in the name of its handlers' type.
const TRACEPOINT_PREFIX: &str = "btf_trace_";

/// The helper functions that the kernel has for BPF programs, read from the enumeration that numbers them.
struct Helpers<'a>(Vec<&'a str>);

impl<'a> Helpers<'a> {
    fn from_btf(btf: &'a Btf) -> Self {
        Self(enumerators(btf, "bpf_func_id").collect())
    }

    fn has(&self, name: &str) -> bool {
        self.0
            .iter()
            .any(|helper| helper.strip_prefix("BPF_FUNC_") == Some(name))
    }
}

/// The names in an enumeration; empty if the kernel has no such enumeration.
fn enumerators<'a>(btf: &'a Btf, name: &str) -> impl Iterator<Item = &'a str> {
    let found = btf
        .named(TypeKind::Enum, name)
        .or_else(|| btf.named(TypeKind::Enum64, name));
    found.into_iter().flat_map(Type::enumerators)
}

/// The offsets that lead from `current` to this CPU's preemption counter; see `waker.rs` on the BPF side.
fn per_cpu(btf: &Btf, task: Type<'_>) -> Result<[(&'static str, u32); 6]> {
    let offset_of = |fields: Type<'_>, structure: &str, name: &str| offset_of(fields, structure, &[name]);
    let entity = struct_named(btf, "sched_entity")?;
    let cfs_rq = offset_of(task, "task_struct", "se")? + offset_of(entity, "sched_entity", "cfs_rq")?;
    let rq = offset_of(struct_named(btf, "cfs_rq")?, "cfs_rq", "rq")?;
    let symbols = PerCpuSymbols::default();
    let variable = |name: &str| per_cpu_variable(btf, name).or_else(|error| symbols.offset(name).ok_or(error));
    // Linux 6.2 to 6.14 kept both in the structure `pcpu_hot`.
    let hot = |member: &str| {
        let fields = struct_named(btf, "pcpu_hot")?;
        Ok::<u32, Error>(variable("pcpu_hot")? + offset_of(fields, "pcpu_hot", member)?)
    };
    let current = variable("current_task").or_else(|_| hot("current_task"))?;
    let preempt_count = variable("__preempt_count").or_else(|_| hot("preempt_count"))?;
    Ok([
        ("OFFSET_CFS_RQ", cfs_rq),
        ("OFFSET_RQ", rq),
        ("PER_CPU_RUNQUEUES", variable("runqueues")?),
        ("PER_CPU_CURRENT", current),
        ("PER_CPU_PREEMPT_COUNT", preempt_count),
        ("PER_CPU_KNOWN", 1),
    ])
}

/// Offset in bytes of a per-CPU variable in the section of per-CPU variables.
fn per_cpu_variable(btf: &Btf, name: &str) -> Result<u32> {
    btf.named(TypeKind::Section, ".data..percpu")
        .and_then(|section| section.variables().find(|(variable, _)| variable.name() == name))
        .map(|(_, offset)| offset)
        .ok_or_else(|| lacks(format!("the per-CPU variable {name}")))
}

/// The kernel's symbol table, for kernels whose BTF has no variables (such as Debian's 5.10): in it the value of a per-CPU
/// variable is its offset in the per-CPU section. It is read only if it is needed, and only once.
#[derive(Default)]
struct PerCpuSymbols {
    table: std::cell::OnceCell<String>,
}

impl PerCpuSymbols {
    fn offset(&self, name: &str) -> Option<u32> {
        // A hidden table has zeroes as values. One that cannot be read counts as empty.
        let table = self
            .table
            .get_or_init(|| fs::read_to_string("/proc/kallsyms").unwrap_or_default());
        per_cpu_symbol(table, name)
    }
}

/// The value of a symbol if it can be the offset of a per-CPU variable: not hidden, and not an address.
fn per_cpu_symbol(table: &str, name: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let (value, rest) = line.split_once(' ')?;
        let (_, symbol) = rest.split_once(' ')?;
        if symbol != name {
            return None;
        }
        u32::from_str_radix(value, 16).ok().filter(|&offset| offset != 0)
    })
}

/// The number of parameters of a tracepoint in BTF; the first one is its private data.
///
/// The number distinguishes kernels where a tracepoint has changed. `sched_switch` has a fifth parameter, `prev_state`, since
/// Linux 5.18. `sched_process_exit` got its third one, `group_dead`, when it was moved to before the thread gives up its memory
/// (6.16).
fn parameters(btf: &Btf, tracepoint: &str) -> Result<usize> {
    btf.named(TypeKind::Typedef, &format!("{TRACEPOINT_PREFIX}{tracepoint}"))
        .and_then(|handler| handler.resolve(&[TypeKind::Prototype], true))
        .map(Type::parameters)
        .ok_or_else(|| lacks(format!("the tracepoint {tracepoint}")))
}

#[cfg(test)]
mod tests {
    use super::super::btf::build::BtfBuilder;
    use super::*;

    /// BTF with one structure, `task_struct`, that has these members: name and offset in bits.
    fn task(members: &[(&str, u32)]) -> Btf {
        let mut btf = BtfBuilder::new();
        let members: Vec<_> = members.iter().map(|&(name, bits)| (name, 0, bits)).collect();
        btf.composite(TypeKind::Struct, "task_struct", &members);
        btf.read()
    }

    fn fields(btf: &Btf) -> Type<'_> {
        struct_named(btf, "task_struct").expect("the structure exists")
    }

    #[test]
    fn a_field_is_found_under_its_older_name() {
        let new = task(&[("flags", 0), ("__state", 192)]);
        let old = task(&[("state", 128)]);
        for (btf, offset) in [(new, 24), (old, 16)] {
            let found = offset_of(fields(&btf), "task_struct", &["__state", "state"]);
            assert_eq!(found.ok(), Some(offset));
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let btf = task(&[]);
        let field = offset_of(fields(&btf), "task_struct", &["__state", "state"]).expect_err("it is missing");
        let structure = struct_named(&btf, "cfs_rq").expect_err("it is missing");
        let tracepoint = parameters(&btf, "sched_switch").expect_err("it is missing");
        let variable = per_cpu_variable(&btf, "runqueues").expect_err("it is missing");
        for (error, named) in [
            (field, "task_struct.__state or state"),
            (structure, "struct cfs_rq"),
            (tracepoint, "the tracepoint sched_switch"),
            (variable, "the per-CPU variable runqueues"),
        ] {
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_btf_is_named_with_the_reason() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let error = Offsets::from_file(file.path()).expect_err("an empty file is refused");
        assert!(
            error.to_string().contains("a readable type table (it does not begin"),
            "{error}"
        );
    }

    #[test]
    fn a_member_is_found_in_a_union_without_a_name() {
        // Like `pcpu_hot` of Linux 6.12: a union of a structure and of bytes that fill a cache line.
        let mut btf = BtfBuilder::new();
        let inner = btf.composite(
            TypeKind::Struct,
            "",
            &[("current_task", 0, 0), ("preempt_count", 0, 64)],
        );
        let inner = btf.reference(TypeKind::Const, "", inner);
        let union = btf.composite(TypeKind::Union, "", &[("", inner, 0), ("pad", 0, 0)]);
        btf.composite(TypeKind::Struct, "pcpu_hot", &[("before", 0, 0), ("", union, 512)]);
        let btf = btf.read();
        let hot = struct_named(&btf, "pcpu_hot").expect("the structure exists");
        let offset = |name| offset_of(hot, "pcpu_hot", &[name]).ok();
        assert_eq!(offset("preempt_count"), Some(72));
        assert_eq!(offset("pad"), Some(64));
        assert_eq!(offset("nothing"), None);
    }

    #[test]
    fn a_structure_that_holds_itself_is_left() {
        let mut btf = BtfBuilder::new();
        btf.composite(TypeKind::Struct, "task_struct", &[("", 1, 0)]);
        let btf = btf.read();
        assert!(offset_of(fields(&btf), "task_struct", &["pid"]).is_err());
    }

    #[test]
    fn a_kernel_without_the_fields_of_quota_and_freezer_is_asked_for_none() {
        let old = task(&[("flags", 288)]);
        assert_eq!(throttled(fields(&old)), [("OFFSET_THROTTLED", 0), ("HAS_THROTTLED", 0)]);
        let mut new = BtfBuilder::new();
        let members = [("throttled", 0, 6_016), ("jobctl", 0, 9_408), ("frozen", 1, 9_548)];
        new.bits("task_struct", &members);
        let new = new.read();
        assert_eq!(
            throttled(fields(&new)),
            [("OFFSET_THROTTLED", 752), ("HAS_THROTTLED", 1)]
        );
        let value = |btf: &Btf, name: &str| {
            let constants = frozen(btf, fields(btf));
            constants
                .into_iter()
                .find(|&(known, _)| known == name)
                .map(|(_, value)| value)
        };
        assert_eq!(value(&new, "OFFSET_JOBCTL"), Some(1_176));
        assert_eq!(
            (value(&new, "OFFSET_FROZEN"), value(&new, "FROZEN_BIT")),
            (Some(1_193), Some(16))
        );
        assert_eq!(
            (value(&old, "OFFSET_FROZEN"), value(&old, "FROZEN_BIT")),
            (Some(0), Some(0))
        );
    }

    #[test]
    fn the_flag_of_the_freezer_is_asked_for_up_to_its_newer_function() {
        let flag = |with: fn(&mut BtfBuilder)| {
            let mut btf = BtfBuilder::new();
            btf.composite(TypeKind::Struct, "task_struct", &[]);
            with(&mut btf);
            let btf = btf.read();
            let constants = frozen(&btf, fields(&btf));
            constants.into_iter().find(|&(name, _)| name == "FROZEN_FLAG")
        };
        let function = |btf: &mut BtfBuilder| {
            let prototype = btf.prototype(2);
            btf.reference(TypeKind::Function, "__set_task_frozen", prototype);
        };
        assert_eq!(flag(|_| {}), Some(("FROZEN_FLAG", 0x1_0000)));
        assert_eq!(flag(function), Some(("FROZEN_FLAG", 0)));
    }

    #[test]
    fn a_tracepoint_has_the_parameters_of_its_handlers() {
        let mut btf = BtfBuilder::new();
        let prototype = btf.prototype(5);
        let pointer = btf.reference(TypeKind::Pointer, "", prototype);
        btf.reference(TypeKind::Typedef, "btf_trace_sched_switch", pointer);
        let btf = btf.read();
        assert_eq!(parameters(&btf, "sched_switch").ok(), Some(5));
        assert!(parameters(&btf, "sched").is_err());
    }

    #[test]
    fn a_per_cpu_variable_is_found_in_its_section_alone() {
        let mut btf = BtfBuilder::new();
        let other = btf.variable("jiffies", 0);
        let queues = btf.variable("runqueues", 0);
        btf.section(".data", &[(other, 16)]);
        btf.section(".data..percpu", &[(queues, 4_096)]);
        let btf = btf.read();
        assert_eq!(per_cpu_variable(&btf, "runqueues").ok(), Some(4_096));
        assert!(per_cpu_variable(&btf, "jiffies").is_err());
    }

    #[test]
    fn a_per_cpu_symbol_is_an_offset_and_no_address() {
        let table = "0000000000000000 A fixed_percpu_data\n0000000000017bc0 A current_task\n\
                     ffffffff81000000 T _text\n0000000000001000 d other\t[module]\n";
        assert_eq!(per_cpu_symbol(table, "current_task"), Some(0x17bc0));
        for missing in ["fixed_percpu_data", "_text", "other", "current"] {
            assert_eq!(per_cpu_symbol(table, missing), None, "{missing}");
        }
    }

    #[test]
    fn helpers_are_listed_by_the_enumeration_of_their_numbers() {
        let mut btf = BtfBuilder::new();
        btf.enumeration(
            TypeKind::Enum,
            "bpf_func_id",
            &["BPF_FUNC_unspec", "BPF_FUNC_map_lookup_elem"],
        );
        let btf = btf.read();
        let helpers = Helpers::from_btf(&btf);
        assert!(helpers.has("map_lookup_elem"));
        assert!(!helpers.has("no_such_helper"));
        assert!(!Helpers::from_btf(&task(&[])).has("map_lookup_elem"));
    }

    #[test]
    fn the_running_kernels_helpers_are_listed() {
        let Ok(btf) = Btf::from_file(Path::new(BTF_PATH)) else {
            return;
        };
        let helpers = Helpers::from_btf(&btf);
        assert!(helpers.has("map_lookup_elem"));
        assert!(!helpers.has("no_such_helper"));
    }
}
