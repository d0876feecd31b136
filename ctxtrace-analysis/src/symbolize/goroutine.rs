//! The function that a goroutine was started with, which serves as its type.
//!
//! The BPF programs record `g.startpc`, the address of this function, once per goroutine. Goroutines for which the table has no
//! room share an id that contains the address.

use std::collections::BTreeMap;

use ctxtrace_common::locator::start_of_go_others;
use ctxtrace_common::process::TaskKey;

use ctxtrace_format::Aggregates;

/// The address of the start function of each goroutine of a capture.
#[must_use]
pub fn starts(aggregates: &Aggregates) -> BTreeMap<TaskKey, u64> {
    let known = aggregates.goroutines.iter().copied();
    let shared = aggregates.switch_sums.iter().filter_map(|(key, _)| {
        let task = TaskKey {
            task: key.task,
            image: super::stacks::image_of(key),
        };
        Some((task, start_of_go_others(key.task)?))
    });
    known.chain(shared).filter(|&(_, startpc)| startpc != 0).collect()
}

/// The name of a function as in the Go source, without the suffix for its calling convention.
#[must_use]
pub fn plain_name(symbol: &str) -> String {
    let suffixes = [".abi0", ".abiinternal"];
    let plain = suffixes.into_iter().find_map(|suffix| symbol.strip_suffix(suffix));
    plain.unwrap_or(symbol).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctxtrace_common::ledger::Class;
    use ctxtrace_common::locator::{GO_TASK, go_others};
    use ctxtrace_common::process::Image;
    use ctxtrace_common::stack::SwitchSum;
    use ctxtrace_format::build;

    #[test]
    fn goroutines_that_share_an_id_have_their_function_in_it() {
        let image = Image { tgid: 100, number: 0 };
        let key = |task| TaskKey { task, image };
        let mut aggregates = build::aggregates(vec![]);
        aggregates.goroutines = vec![(key(GO_TASK | 1), 0x48_1000), (key(GO_TASK | 2), 0)];
        let tasks = [GO_TASK | 1, go_others(0x48_2000), 17];
        aggregates.switch_sums = tasks
            .map(|task| (build::sum_key(Class::TaskBlocked, task), SwitchSum::default()))
            .to_vec();
        let starts: Vec<_> = starts(&aggregates).into_iter().collect();
        assert_eq!(
            starts,
            [(key(go_others(0x48_2000)), 0x48_2000), (key(GO_TASK | 1), 0x48_1000)]
        );
    }

    #[test]
    fn a_function_is_called_as_in_the_source() {
        assert_eq!(plain_name("runtime.goexit.abi0"), "runtime.goexit");
        assert_eq!(plain_name("main.main.func1"), "main.main.func1");
    }
}
