//! Finds the function that a goroutine's start function calls, if the compiler generated the start function.
//!
//! `go courier(60)` is compiled as `go func() { courier(60) }()`: the goroutine starts in a wrapper that is not in the source,
//! named `main.main.func1` or `main.main.gowrap1`. The linker marks such functions (`funcID_wrapper`) with a number that differs
//! between versions. `runtime.deferreturn` has the same mark in all versions (Go: `src/cmd/internal/objabi/funcid.go`).
//!
//! Apart from calls that the compiler adds to any function, a wrapper has one call:
//!
//! * If the called function was inlined, it is the first entry of the wrapper's list of inlined calls.
//! * Otherwise the code has one `call` or `jmp` to the first byte of a function. If the call goes through a register, the callee
//!   remains unknown. This is the case for a function value (`go f(60)`) and for a method of an interface.

use super::go_functions::{Function, GoFunctions};
use super::go_module::GoModule;
use super::loaded::Loaded;

/// Maximum number of wrappers followed from one to the next.
const MAX_WRAPPERS: usize = 4;
/// Number of bytes of a wrapper that are searched for its call. Only a wrapper that copies very many arguments is longer.
const MAX_CODE_BYTES: usize = 4 << 10;
/// Opcodes of the x86-64 instructions `call` and `jmp` with a 4-byte displacement.
const CALL_AND_JUMP: [u8; 2] = [0xe8, 0xe9];
/// Size of such an instruction in bytes.
const INSTRUCTION_BYTES: u64 = 5;
/// Prefixes of the names of functions to which the compiler adds calls: to grow the stack, to copy memory, to notify the garbage
/// collector or a sanitizer, and to panic.
const ADDED_CALLS: [&str; 11] = [
    "runtime.morestack",
    "runtime.duffcopy",
    "runtime.duffzero",
    "runtime.memmove",
    "runtime.typedmemmove",
    "runtime.gcWriteBarrier",
    "runtime.wb",
    "runtime.panic",
    "runtime.race",
    "runtime.msan",
    "runtime.asan",
];

/// The function that a wrapper calls.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Callee {
    /// The function at this address.
    At(u64),
    /// The function with this name, which was inlined.
    Inlined(String),
}

/// Recognizes the wrappers of one program.
pub(super) struct Wrappers<'a> {
    functions: &'a GoFunctions<'a>,
    loaded: &'a Loaded<'a>,
    /// The mark of wrappers (`funcID_wrapper`).
    mark: u8,
    /// The address from which the offsets of funcdata are counted, if it is known.
    funcdata: Option<u64>,
}

impl<'a> Wrappers<'a> {
    /// `None` if the mark of wrappers cannot be found in the program.
    pub(super) fn find(functions: &'a GoFunctions<'a>, loaded: &'a Loaded<'a>) -> Option<Self> {
        let mark = functions.kind(&functions.called("runtime.deferreturn")?)?;
        let module = || GoModule::find(&functions.repeated()?, loaded);
        (mark != 0).then(|| Self {
            functions,
            loaded,
            mark,
            funcdata: module().and_then(|module| module.funcdata(functions.address(), loaded)),
        })
    }

    /// The function called by the wrapper that starts at an address; `None` if no wrapper starts there, or if its callee is
    /// unknown.
    pub(super) fn callee(&self, start: u64) -> Option<Callee> {
        let mut callee = None;
        let mut at = start;
        for _ in 0..MAX_WRAPPERS {
            let function = self.functions.around(at).filter(|function| function.start == at);
            let Some(next) = function.and_then(|function| self.next(&function)) else {
                return callee;
            };
            if let Callee::At(address) = next {
                at = address;
                callee = Some(next);
            } else {
                return Some(next);
            }
        }
        callee
    }

    /// The function that this function calls, if this function is a wrapper.
    fn next(&self, wrapper: &Function) -> Option<Callee> {
        if self.functions.kind(wrapper)? != self.mark {
            return None;
        }
        match self.functions.inlined_calls(wrapper) {
            Some(offset) => {
                let call = self.funcdata?.checked_add(u64::from(offset))?;
                let name = self.functions.inlined_name(call, self.loaded)?;
                Some(Callee::Inlined(name))
            }
            None => self.only_call(wrapper).map(Callee::At),
        }
    }

    /// The only function whose first byte the wrapper calls or jumps to. The code is searched byte by byte. Four bytes that are
    /// not a displacement hardly ever lead to the first byte of a function; if they do, there are two candidates, and the result
    /// is `None`.
    fn only_call(&self, wrapper: &Function) -> Option<u64> {
        let length = usize::try_from(wrapper.end.checked_sub(wrapper.start)?).ok()?;
        let code = self.loaded.at(wrapper.start, length.min(MAX_CODE_BYTES))?;
        let mut only = None;
        for (index, window) in code.windows(INSTRUCTION_BYTES as usize).enumerate() {
            let [instruction, distance @ ..] = window else {
                continue;
            };
            if !CALL_AND_JUMP.contains(instruction) {
                continue;
            }
            let Some(distance) = distance.first_chunk() else {
                continue;
            };
            let behind = wrapper.start + index as u64 + INSTRUCTION_BYTES;
            let target = behind.wrapping_add_signed(i64::from(i32::from_le_bytes(*distance)));
            if target == wrapper.start || !self.is_own_call(target) {
                continue;
            }
            if only.is_some_and(|only| only != target) {
                return None;
            }
            only = Some(target);
        }
        only
    }

    /// Whether a function begins at an address and is not one to which the compiler adds calls.
    fn is_own_call(&self, target: u64) -> bool {
        let function = self
            .functions
            .around(target)
            .filter(|function| function.start == target);
        let name = function.and_then(|function| self.functions.name_of(&function));
        name.is_some_and(|name| !ADDED_CALLS.iter().any(|added| name.starts_with(added)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::go_synthetic::{CODE, GoProgram, Version};
    use super::*;

    const VERSIONS: [Version; 3] = [Version::Go118, Version::Go120, Version::Go127];

    fn callee(program: &GoProgram, name: &str) -> Option<Callee> {
        let bytes = program.bytes();
        let loaded = Loaded::of_segment(&bytes, CODE);
        let functions = program.functions(&bytes, &loaded)?;
        let wrappers = Wrappers::find(&functions, &loaded)?;
        wrappers.callee(program.start(name))
    }

    /// A wrapper that grows its stack and calls each of these functions.
    fn wrapper(version: Version, calls: &[&str]) -> GoProgram {
        let mut program = GoProgram::new(version);
        program.function("main.main.gowrap1", program.wrapper_kind());
        for call in calls {
            program.call("main.main.gowrap1", call);
        }
        program.call("main.main.gowrap1", "runtime.morestack");
        program.jump("main.main.gowrap1", "main.main.gowrap1");
        program
    }

    #[test]
    fn a_wrapper_is_the_function_that_it_calls() {
        for version in VERSIONS {
            let program = wrapper(version, &["main.courier"]);
            let expected = Some(Callee::At(program.start("main.courier")));
            assert_eq!(callee(&program, "main.main.gowrap1"), expected, "{version:?}");
            // A function from the source that calls another one is not a wrapper.
            assert_eq!(callee(&program, "main.courier"), None, "{version:?}");
        }
    }

    #[test]
    fn wrappers_of_wrappers_are_followed() {
        let mut program = wrapper(Version::Go120, &["main.(*van).deliver-fm"]);
        program.function("main.(*van).deliver-fm", program.wrapper_kind());
        program.jump("main.(*van).deliver-fm", "main.(*van).deliver");
        let expected = Some(Callee::At(program.start("main.(*van).deliver")));
        assert_eq!(callee(&program, "main.main.gowrap1"), expected);
    }

    #[test]
    fn wrappers_in_a_circle_come_to_an_end() {
        let mut program = wrapper(Version::Go120, &["main.main.gowrap2"]);
        program.function("main.main.gowrap2", program.wrapper_kind());
        program.call("main.main.gowrap2", "main.main.gowrap1");
        assert!(callee(&program, "main.main.gowrap1").is_some());
    }

    #[test]
    fn an_inlined_function_goes_before_what_it_calls() {
        for version in VERSIONS {
            let mut program = wrapper(version, &["main.nap"]);
            program.inline("main.main.gowrap1", "main.courier");
            let expected = Some(Callee::Inlined("main.courier".to_owned()));
            assert_eq!(callee(&program, "main.main.gowrap1"), expected, "{version:?}");
        }
    }

    #[test]
    fn what_is_not_certain_is_not_said() {
        // Two calls; no call (it goes through a register); only an added call.
        for calls in [&["main.courier", "main.nap"][..], &[], &["runtime.panicwrap"]] {
            assert_eq!(
                callee(&wrapper(Version::Go120, calls), "main.main.gowrap1"),
                None,
                "{calls:?}"
            );
        }
        let mut program = wrapper(Version::Go120, &[]);
        program.call_behind("main.main.gowrap1", "main.courier", 1);
        assert_eq!(callee(&program, "main.main.gowrap1"), None);
        // A goroutine does not start in the middle of a wrapper.
        let program = wrapper(Version::Go120, &["main.courier"]);
        let bytes = program.bytes();
        let loaded = Loaded::of_segment(&bytes, CODE);
        let functions = program.functions(&bytes, &loaded).expect("the table is found");
        let wrappers = Wrappers::find(&functions, &loaded).expect("the mark is found");
        assert_eq!(wrappers.callee(program.start("main.main.gowrap1") + 1), None);
    }

    #[test]
    fn a_program_that_lies_is_read_all_the_same() {
        let mut program = wrapper(Version::Go127, &["main.courier"]);
        program.inline("main.main.gowrap1", "main.courier");
        let whole = program.bytes();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] = 0xff;
            let loaded = Loaded::of_segment(&bytes, CODE);
            let Some(functions) = program.functions(&bytes, &loaded) else {
                continue;
            };
            let wrappers = Wrappers::find(&functions, &loaded);
            // The result does not matter, as long as nothing panics.
            let _ = wrappers.and_then(|wrappers| wrappers.callee(program.start("main.main.gowrap1")));
        }
    }
}
