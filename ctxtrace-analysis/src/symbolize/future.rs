//! Determines the type of the task that a stack belongs to, from the names of its functions.
//!
//! A runtime polls a task through several functions of its own. The first function further in that belongs neither to the runtime
//! nor to the language is the `poll` of the task's future. The name of a combinator's `poll` contains the type; that of an `async
//! fn` or block is a closure in the function that contains it.

/// Prefixes of the functions through which tokio polls a task (`tokio/src/runtime/task/`) and of the probe's.
const POLLERS: [&str; 2] = ["tokio::runtime::task::", "ctxtrace_probe::"];

/// Prefixes of functions between the runtime and the future that say nothing about the future.
const WRAPPERS: [&str; 7] = [
    "core::",
    "std::",
    "alloc::",
    "__rust_try",
    "rust_try",
    "tokio::task::coop::",
    "tokio::loom::",
];

/// The type, or the `async fn`, of the task whose stack has these functions, outermost first.
pub(super) fn type_of<'a>(functions: impl DoubleEndedIterator<Item = &'a str> + Clone) -> Option<String> {
    let count = functions.clone().count();
    let from_innermost = functions.clone().rev().position(is_poller)?;
    let function = functions
        .skip(count - from_innermost)
        .find(|function| !is_wrapper(function))?;
    Some(normalized(function))
}

fn is_poller(function: &str) -> bool {
    POLLERS.iter().any(|prefix| bare(function).starts_with(prefix))
}

/// The `poll` of a future has a path. A function without a path belongs to the C library, in a stack that lacks a frame.
fn is_wrapper(function: &str) -> bool {
    WRAPPERS.iter().any(|prefix| bare(function).starts_with(prefix))
        || function.starts_with('[')
        || !function.contains("::")
}

/// The path, without the bracket with which `<Type as Trait>::function` begins.
fn bare(function: &str) -> &str {
    function.trim_start_matches('<')
}

/// Shortens `<a::B<C> as core::future::future::Future>::poll` to `a::B<C>`, and `a::f::{{closure}}` to `a::f`.
fn normalized(function: &str) -> String {
    let implementor = function.strip_prefix('<').and_then(|rest| rest.split_once(" as "));
    let name = implementor.map_or(function, |(implementor, _)| implementor);
    let end = name
        .find("::{{closure}}")
        .or_else(|| name.find("::{closure"))
        .unwrap_or(name.len());
    name[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_async_fn_goes_by_its_name() {
        let stack = [
            "clone3",
            "tokio::runtime::scheduler::multi_thread::worker::run",
            "tokio::runtime::task::raw::poll",
            "tokio::runtime::task::harness::Harness<T,S>::poll",
            "<core::panic::unwind_safe::AssertUnwindSafe<F> as core::ops::function::FnOnce<()>>::call_once",
            "tokio::runtime::task::core::Core<T,S>::poll",
            "app::handle::{{closure}}",
            "app::parse",
            "__GI___libc_read",
        ];
        assert_eq!(type_of(stack.into_iter()).as_deref(), Some("app::handle"));
    }

    #[test]
    fn a_combinator_goes_by_its_type() {
        let stack = [
            "tokio::runtime::task::core::Core<T,S>::poll",
            "<futures_util::stream::Forward<St,Si> as core::future::future::Future>::poll",
            "futures_channel::mpsc::Sender<T>::poll_ready",
        ];
        assert_eq!(
            type_of(stack.into_iter()).as_deref(),
            Some("futures_util::stream::Forward<St,Si>")
        );
    }

    #[test]
    fn the_probes_wrapper_is_not_the_type() {
        let stack = [
            "tokio::runtime::task::raw::poll",
            "<ctxtrace_probe::traced::Traced<F> as core::future::future::Future>::poll",
            "app::main::{{closure}}::{{closure}}",
        ];
        assert_eq!(type_of(stack.into_iter()).as_deref(), Some("app::main"));
    }

    #[test]
    fn a_stack_without_a_runtime_has_no_type() {
        assert_eq!(type_of(["main", "read"].into_iter()), None);
        assert_eq!(type_of(["tokio::runtime::task::raw::poll"].into_iter()), None);
        assert_eq!(
            type_of(["tokio::runtime::task::raw::poll", "[unknown: no symbols]"].into_iter()),
            None
        );
        assert_eq!(
            type_of(["tokio::runtime::task::raw::poll", "syscall"].into_iter()),
            None
        );
    }
}
