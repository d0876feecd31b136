//! Reads the layout of tokio's thread-local `CONTEXT` from the type information. The types are followed from the variable to each
//! field by the names in the sources of tokio and `std`.
//!
//! ```text
//! VAL: std::sys::thread_local::native::eager::Storage<Context>
//!   state: Cell<State>                                enum State { Initial, Alive, Destroyed }
//!   val: UnsafeCell<tokio::runtime::context::Context>
//!     current: HandleCell
//!       handle: RefCell<Option<scheduler::Handle>>
//!     scheduler: Scoped<scheduler::Context>
//!       inner: Cell<*const scheduler::Context>
//!     current_task_id: Cell<Option<Id>>               struct Id(NonZeroU64)
//!     runtime: Cell<EnterRuntime>                     enum EnterRuntime { Entered { .. }, NotEntered }
//!     budget: Cell<Budget>                            struct Budget(Option<u8>)
//! ```

use ctxtrace_common::locator::{Field, MAX_CONTEXT_BYTES, TokioLayout};
use memchr::memmem;

use super::budget::ExaminationBudget;
use super::elf::{DebugSections, ThreadLocal};
use super::signs;
use super::types::{Discriminant, EntryPosition, Missing, TypedValue, Types, too_much};

/// The maximum nesting depth of wrapper types, such as `Cell`. Deeper nesting is an unknown layout.
const MAX_WRAPPERS: usize = 8;

/// The result of the search for the layout.
pub(super) enum Sought {
    /// The layout was found.
    Layout(TokioLayout),
    /// The feature `rt` of tokio is off, so there are no tasks.
    NoRuntime,
    /// There is no type information about the thread-local.
    NoTypes,
    /// The layout is unknown; the text gives the detail.
    Unknown(String),
}

/// Whether this is the demangled name of tokio's context.
pub(super) fn is_context(name: &str) -> bool {
    name.starts_with("tokio::runtime::context::CONTEXT::")
}

/// Determines the layout of the thread-local, and the release of tokio if the type information names it.
pub(super) fn locate(
    sections: &DebugSections<'_>,
    budget: &ExaminationBudget,
    context: &ThreadLocal<'_>,
    below_tp: u64,
) -> (Sought, Option<String>) {
    // Sections that were not read because of their size may contain the types.
    let without_types = || {
        if sections.is_whole {
            Sought::NoTypes
        } else {
            Sought::Unknown(too_much().0)
        }
    };
    // Line tables alone are large too, and do not name a variable: no need to read them.
    let symbol = context.mangled.as_bytes();
    if memmem::find(&sections.str, symbol).is_none() && memmem::find(&sections.info, symbol).is_none() {
        return (without_types(), None);
    }
    let types = match Types::new(sections, budget) {
        Ok(types) => types,
        Err(Missing(what)) => return (Sought::Unknown(what), None),
    };
    match types.variable(context.mangled, "tokio") {
        Ok(Some((place, unit))) => {
            let sought = layout(&types, place, context.size, below_tp);
            (
                sought.unwrap_or_else(|Missing(what)| Sought::Unknown(what)),
                signs::version(unit.as_bytes()),
            )
        }
        Ok(None) => (without_types(), None),
        Err(Missing(what)) => (Sought::Unknown(what), None),
    }
}

fn layout(types: &Types<'_>, variable: EntryPosition, symbol_size: u64, below_tp: u64) -> Result<Sought, Missing> {
    let storage = TypedValue {
        place: variable,
        offset: 0,
    };
    // Without the runtime the type has no destructor, so the thread-local is the context itself, without state and wrapper.
    if is_without_runtime(types, variable)? {
        return Ok(Sought::NoRuntime);
    }
    let size = types.size(variable)?;
    if size != symbol_size {
        return Err(Missing(format!(
            "the symbol CONTEXT has {symbol_size} bytes, but its type has {size}"
        )));
    }
    let context = peel(types, types.member(storage, "val")?)?;
    if is_without_runtime(types, context.place)? {
        return Ok(Sought::NoRuntime);
    }
    let within = Within { size };
    let state = peel(types, types.member(storage, "state")?)?;
    let current = peel(types, types.member(context, "current")?)?;
    let handle = peel(types, types.member(current, "handle")?)?;
    let scheduler = peel(types, types.member(context, "scheduler")?)?;
    let scheduler = peel(types, types.member(scheduler, "inner")?)?;
    let task_id = peel(types, types.member(context, "current_task_id")?)?;
    let runtime = peel(types, types.member(context, "runtime")?)?;
    let entered = types.payload(runtime, "Entered")?;
    let block_in_place = types.member(entered, "allow_block_in_place")?;
    let depth = peel(types, types.member(current, "depth")?)?;
    let budget = peel(types, types.member(context, "budget")?)?;
    let budget = types.member(budget, "__0")?;
    Ok(Sought::Layout(TokioLayout {
        below_tp,
        state: within.field(types.discriminant(state, "Alive")?)?,
        budget: within.field(types.discriminant(budget, "None")?)?,
        task_id: within.field(types.discriminant(task_id, "None")?)?,
        scheduler: within.field(null_pointer(types, scheduler)?)?,
        runtime: within.field(types.discriminant(runtime, "NotEntered")?)?,
        block_in_place: within.field(number(types, block_in_place, 0)?)?,
        handle: within.field(types.discriminant(handle, "None")?)?,
        depth: within.field(number(types, depth, 1)?)?,
        task_id_offset: within.field(task_number(types, task_id)?)?.offset,
        size: within.narrow(size)?,
    }))
}

/// Whether this type is the context of a tokio without the feature `rt`.
fn is_without_runtime(types: &Types<'_>, place: EntryPosition) -> Result<bool, Missing> {
    if types.name(place)? != "Context" {
        return Ok(false);
    }
    for name in ["current", "scheduler", "current_task_id", "runtime"] {
        if types.has_member(place, name)? {
            return Ok(false);
        }
    }
    types.has_member(place, "budget")
}

/// Returns the value inside any wrapper types; in each of them the member is called `value`.
fn peel(types: &Types<'_>, value: TypedValue) -> Result<TypedValue, Missing> {
    const WRAPPERS: [&str; 5] = ["Cell<", "UnsafeCell<", "RefCell<", "ManuallyDrop<", "MaybeDangling<"];
    let mut value = value;
    for _ in 0..MAX_WRAPPERS {
        let name = types.name(value.place)?;
        if !WRAPPERS.iter().any(|wrapper| name.starts_with(wrapper)) {
            return Ok(value);
        }
        value = types.member(value, "value")?;
    }
    Err(types.missing(value.place, "value"))
}

fn null_pointer(types: &Types<'_>, pointer: TypedValue) -> Result<Discriminant, Missing> {
    if !types.is_pointer(pointer.place)? {
        return Err(types.missing(pointer.place, "pointer"));
    }
    Ok(Discriminant {
        offset: pointer.offset,
        size: types.size(pointer.place)?,
        value: 0,
    })
}

/// Describes an integer or a `bool`, and the value to compare it with, as a discriminant.
fn number(types: &Types<'_>, of: TypedValue, value: u64) -> Result<Discriminant, Missing> {
    Ok(Discriminant {
        offset: of.offset,
        size: types.size(of.place)?,
        value,
    })
}

/// Returns the `u64` inside `Option<Id>`, through any number of tuple structures with one member.
fn task_number(types: &Types<'_>, option: TypedValue) -> Result<Discriminant, Missing> {
    let mut number = types.payload(option, "Some")?;
    for _ in 0..MAX_WRAPPERS {
        if !types.has_member(number.place, "__0")? {
            break;
        }
        number = types.member(number, "__0")?;
    }
    match types.size(number.place)? {
        size @ 8 if types.name(number.place)? == "u64" => Ok(Discriminant {
            offset: number.offset,
            size,
            value: 0,
        }),
        _ => Err(types.missing(number.place, "u64 of the task id")),
    }
}

/// The bytes of the thread-local, which are read at once and must contain all fields.
struct Within {
    size: u64,
}

impl Within {
    fn field(&self, of: Discriminant) -> Result<Field, Missing> {
        let end = of.offset.checked_add(of.size);
        if end.is_none_or(|end| end > self.size) {
            return Err(Missing("a field is outside CONTEXT".into()));
        }
        let field = Field {
            special: of.value,
            offset: self.narrow(of.offset)?,
            size: self.narrow(of.size)?,
        };
        if !field.is_in_one_word() {
            return Err(Missing("a field of CONTEXT is not aligned".into()));
        }
        Ok(field)
    }

    fn narrow(&self, number: u64) -> Result<u32, Missing> {
        match u32::try_from(number) {
            Ok(narrow) if self.size <= MAX_CONTEXT_BYTES as u64 => Ok(narrow),
            _ => Err(Missing(format!(
                "CONTEXT has {} bytes, but ctxtrace supports at most {MAX_CONTEXT_BYTES}",
                self.size
            ))),
        }
    }
}
