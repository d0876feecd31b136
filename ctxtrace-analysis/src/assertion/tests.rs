//! Tests of which assertions are accepted, which are rejected, and what they evaluate to.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::fixtures::{info, run};
use crate::summarize::summarize;
use ctxtrace_format::workload::Mode;

fn refused(expression: &str) -> String {
    match expression.parse::<Assertion>() {
        Ok(assertion) => panic!("{assertion} was accepted, but should be rejected"),
        Err(error) => error.to_string(),
    }
}

/// Returns `None` if the assertion holds, or why it does not.
fn judged(expression: &str, report: &Value) -> Option<String> {
    let assertion: Assertion = expression
        .parse()
        .unwrap_or_else(|error| panic!("{expression}: {error}"));
    assertion.evaluate(report).err().map(|not_met| not_met.to_string())
}

/// Returns the parts of a report that the tests make assertions on.
fn report() -> Value {
    json!({
        "complete": true,
        "ledger_adds_up": false,
        "workload": {"runs": [
            {"median": false, "ns_per_message": 2.5},
            {"median": true, "ns_per_message": 1.5},
        ]},
        "kernel_switches": {"total": 9_007_199_254_740_993_u64, "per_message": 0.0186, "ns_per_switch": null},
        "reconciliation": {"difference": -4},
        "task_switches": null,
        "ledger": [
            {"class": "task-blocked", "task": "sender", "count": 3},
            {"class": "task-blocked", "task": "repeater", "count": 4},
            {"class": "exited", "count": 2},
        ],
        "tasks": [
            {"name": "sender", "id": 1, "kernel_switches": 3, "hit_kernel": null},
            {"name": "a]\"b", "id": 2, "kernel_switches": 5, "hit_kernel": 7},
        ],
        "wakeups": [],
        "latency": {"blocked": {"p50_ns": null}},
        "unavailable": [
            {"path": "kernel_switches.ns_per_switch", "reason": "tasks make no switches"},
            {"path": "task_switches", "reason": "no probe"},
            {"path": "tasks[0].hit_kernel", "reason": "not counted"},
            {"path": "latency.blocked.*", "reason": "there was no such interval"},
        ],
    })
}

#[test]
fn what_holds_holds() {
    for expression in [
        "kernel_switches.per_message < 0.02",
        "kernel_switches.per_message<=1.86e-2",
        "  kernel_switches . per_message  >  0 ",
        "reconciliation.difference == -4",
        "reconciliation.difference < +0",
        "complete == true",
        "ledger_adds_up == false",
        "ledger[class=task-blocked].count == 7",
        "ledger[class=task-blocked][task=sender].count == 3",
        "ledger[class=exited][task=sender].count == 0",
        "ledger[class=yielded].count == 0",
        "wakeups[origin=interrupt].count == 0",
        "tasks[1].kernel_switches == 5",
        "tasks[name=sender].kernel_switches >= 3",
        r#"tasks[name="a]\"b"].hit_kernel == 7"#,
        "tasks[ id = 2 ].kernel_switches == 5.0",
        "workload.runs[median=true].ns_per_message == 1.5",
        "workload.runs[0].median == false",
    ] {
        assert_eq!(judged(expression, &report()), None, "{expression}");
    }
}

#[test]
fn what_does_not_hold_says_by_which_value() {
    for (expression, sentence) in [
        (
            "kernel_switches.per_message < 0.01",
            "kernel_switches.per_message is 0.0186",
        ),
        ("reconciliation.difference >= 0", "reconciliation.difference is -4"),
        ("ledger_adds_up == true", "ledger_adds_up is false"),
        (
            "ledger[class=task-blocked].count < 7",
            "ledger[class=task-blocked].count is 7 (2 elements added up)",
        ),
        ("ledger[class=exited].count > 2", "ledger[class=exited].count is 2"),
        (
            "ledger[class=stopped].count > 0",
            "ledger[class=stopped].count is 0 (no element meets the conditions)",
        ),
    ] {
        assert_eq!(judged(expression, &report()).as_deref(), Some(sentence));
    }
}

#[test]
fn a_null_holds_nowhere_and_says_why() {
    for (expression, sentence) in [
        (
            "kernel_switches.ns_per_switch >= 0",
            "kernel_switches.ns_per_switch is null: tasks make no switches",
        ),
        ("task_switches.hit_kernel == 0", "task_switches is null: no probe"),
        (
            "latency.blocked.p50_ns < 5",
            "latency.blocked.p50_ns is null: there was no such interval",
        ),
        (
            "tasks[name=sender].hit_kernel < 5",
            "tasks[0].hit_kernel is null: not counted",
        ),
        (
            "tasks[2].kernel_switches < 5",
            "tasks[2] is null: there is no such element, because tasks has 2 elements",
        ),
        (
            "ledger[2].task_id == 0",
            "ledger[2].task_id is null: the report has no value for this figure",
        ),
        // An assertion must not hold because of a spelling mistake.
        (
            "tasks[name=sneder].kernel_switches < 5",
            "tasks[name=sneder] is null: no element of tasks has this name; existing values: sender, a]\"b",
        ),
        (
            "ledger[class=task-blocked][task=recevier].count == 0",
            "ledger[task=recevier] is null: no element of ledger has this task; existing values: sender, repeater",
        ),
        (
            "wakeups[to_tid=7].count == 0",
            "wakeups[to_tid=7] is null: no element of wakeups has this to_tid",
        ),
    ] {
        assert_eq!(judged(expression, &report()).as_deref(), Some(sentence));
    }
}

#[test]
fn whole_numbers_are_compared_exactly() {
    // As floating-point numbers these two numbers are equal.
    assert_eq!(judged("kernel_switches.total > 9_007_199_254_740_992", &report()), None);
    assert!(judged("kernel_switches.total == 9007199254740992", &report()).is_some());
    let largest = json!({"kernel_switches": {"total": u64::MAX}});
    assert_eq!(judged("kernel_switches.total == 18446744073709551615", &largest), None);
    assert_eq!(judged("kernel_switches.total < 18446744073709551616", &largest), None);
}

#[test]
fn an_expression_of_no_form_is_refused_with_what_is_missing() {
    for (expression, sentence) in [
        ("", "a name is expected at the end"),
        ("< 5", "a name is expected at `< 5`"),
        ("complete", "one of < <= > >= == is expected at the end"),
        ("complete = true", "one of < <= > >= == is expected at `= true`"),
        ("migrations != 0", "one of < <= > >= == is expected at `!= 0`"),
        ("migrations <", "a number, true or false is expected at the end"),
        (
            "migrations < 5 and more",
            "a number, true or false is expected at `5 and more`",
        ),
        ("migrations < inf", "a number, true or false is expected at `inf`"),
        ("migrations < 1e999", "a number, true or false is expected at `1e999`"),
        ("migrations < 1__0", "a number, true or false is expected at `1__0`"),
        ("migrations < _1", "a number, true or false is expected at `_1`"),
        ("migrations. < 5", "a name is expected at `< 5`"),
        ("tasks[0 < 5", "`]` is expected at `< 5`"),
        ("tasks[name] < 5", "`=` and a value is expected at `] < 5`"),
        ("tasks[name=] < 5", "a value is expected at `] < 5`"),
        (r#"tasks[name="x] < 5"#, "a closing `\"` is expected at the end"),
        (
            "tasks[99999999999999999999].id < 5",
            "`[99999999999999999999]` is not an index: the number is too large",
        ),
    ] {
        assert_eq!(refused(expression), sentence);
    }
}

#[test]
fn a_name_that_is_not_there_is_refused_with_what_was_meant() {
    for (expression, sentence) in [
        (
            "kernel_swiches.total < 5",
            "the report has no `kernel_swiches`: did you mean `kernel_switches`?",
        ),
        (
            "kernel-switches.total < 5",
            "the report has no `kernel-switches`: did you mean `kernel_switches`?",
        ),
        (
            "kernel_switches.per_mesage < 5",
            "`kernel_switches` has no `per_mesage`: did you mean `per_message`?",
        ),
        (
            "per_message < 5",
            "the report has no `per_message`: did you mean `kernel_switches.per_message` or `task_switches.per_message`?",
        ),
        (
            "latency.off_cpu.p95_ns < 5",
            "`latency.off_cpu` has no `p95_ns`: did you mean `p90_ns` or `p99_ns` or `p50_ns`?",
        ),
        ("host.zzz < 5", "`host` has no `zzz`; it has cpus, kernel, name"),
        ("complete.now == true", "`complete` is not a group and has no `now`"),
        ("kernel_switches[0].total < 5", "`kernel_switches` is not a list"),
        ("migrations[class=exited] < 5", "`migrations` is not a list"),
        (
            "ledger[class=task-blokced].count < 5",
            "`ledger` has no class `task-blokced`: did you mean `task-blocked`?",
        ),
        (
            "ledger[clas=exited].count < 5",
            "the elements of `ledger` have no `clas`: did you mean `class`?",
        ),
        (
            "ledger[count=few].count < 5",
            "`count` is a number in `ledger`, but `few` is not",
        ),
        (
            "workload.runs[median=yes].difference < 5",
            "`median` is true or false in `workload.runs`, but `yes` is neither",
        ),
    ] {
        assert_eq!(refused(expression), sentence);
    }
}

#[test]
fn what_is_no_number_is_refused_with_what_it_is() {
    for (expression, sentence) in [
        (
            "workload.mode == 1",
            "`workload.mode` is text, but only numbers, true and false can be compared",
        ),
        (
            "cut_short == true",
            "`cut_short` is text, but only numbers, true and false can be compared",
        ),
        (
            "reconciliation.rusage > 5",
            "`reconciliation.rusage` is a group, but only numbers, true and false can be compared: use one of \
             reconciliation.rusage.agrees, reconciliation.rusage.lower, reconciliation.rusage.switches, \
             reconciliation.rusage.upper",
        ),
        (
            "ledger > 5",
            "`ledger` is a list, but only numbers, true and false can be compared: select elements, as in ledger[0] \
             or ledger[key=value], and one of their fields",
        ),
        (
            "complete < true",
            "`complete` is true or false: use `== true` or `== false`",
        ),
        (
            "complete == 1",
            "`complete` is true or false: use `== true` or `== false`",
        ),
        (
            "migrations == true",
            "`migrations` is a number and cannot be compared with true or false",
        ),
        (
            "workload.runs[difference=0].median == true",
            "`workload.runs[difference=0].median` is true or false, and [key=value] adds up numbers: select one element \
             by its index, as in [0]",
        ),
    ] {
        assert_eq!(refused(expression), sentence);
    }
    let error = refused("tasks.kernel_switches < 5");
    assert!(
        error.starts_with(
            "`tasks` is a list: select elements, as in tasks[0].kernel_switches or tasks[key=value].kernel_switches"
        ),
        "{error}"
    );
}

/// Every name in the schema leads to the value in a real result, whether the run is complete or not.
#[test]
fn every_figure_of_a_report_can_be_asserted() {
    let mut cut = run(500_000);
    cut.outcome = None;
    for runs in [[run(500_000)], [cut]] {
        let report = summarize(&info(Mode::Task), &runs);
        let report = serde_json::to_value(report).expect("JSON");
        let mut figures = 0;
        for_each_figure(&report, "", &mut |path, value| {
            figures += 1;
            let bound = if value.is_null() {
                "0".to_owned()
            } else {
                value.to_string()
            };
            // Only the schema knows whether a null stands for a number or for text.
            match format!("{path} == {bound}").parse::<Assertion>() {
                Ok(assertion) => {
                    let not_met = assertion.evaluate(&report).err().map(|not_met| not_met.to_string());
                    match (value.is_null(), not_met) {
                        (true, Some(sentence)) => {
                            assert!(sentence.contains(" is null: "), "{sentence}");
                            assert!(!sentence.contains("no value for this figure"), "{sentence}");
                        }
                        (null, not_met) => assert_eq!((null, not_met), (false, None), "{path}"),
                    }
                }
                Err(error) => assert!(value.is_null(), "{path}: {error}"),
            }
        });
        assert!(figures > 50, "{figures}");
    }
}

fn for_each_figure(value: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                for_each_figure(field, &format!("{path}{dot}{name}"), visit);
            }
        }
        Value::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                for_each_figure(element, &format!("{path}[{index}]"), visit);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => visit(path, value),
        Value::String(_) => {}
    }
}

fn some_step() -> impl Strategy<Value = PathStep> {
    let name = "[a-zA-Z_][a-zA-Z0-9_-]{0,8}";
    let condition = (name, any::<String>()).prop_map(|(key, value)| Condition { key, value });
    prop_oneof![
        name.prop_map(PathStep::Field),
        any::<usize>().prop_map(PathStep::Index),
        prop::collection::vec(condition, 1..3).prop_map(PathStep::Select),
    ]
}

fn some_bound() -> impl Strategy<Value = Bound> {
    let decimal = any::<f64>().prop_filter("finite", |decimal| decimal.is_finite());
    prop_oneof![
        any::<bool>().prop_map(Bound::Flag),
        any::<i128>().prop_map(|whole| Bound::Number(Number::Whole(whole))),
        decimal.prop_map(|decimal| Bound::Number(Number::Decimal(decimal))),
    ]
}

fn some_assertion() -> impl Strategy<Value = Assertion> {
    let first = "[a-zA-Z_][a-zA-Z0-9_-]{0,8}".prop_map(PathStep::Field);
    let operator = prop::sample::select(Operator::ALL.to_vec());
    let more = prop::collection::vec(some_step(), 0..5);
    (first, more, operator, some_bound()).prop_map(|(first, more, operator, bound)| {
        let mut steps = vec![first];
        for step in more {
            // Two consecutive selections are one step.
            match (step, steps.last_mut()) {
                (PathStep::Select(more), Some(PathStep::Select(conditions))) => conditions.extend(more),
                (step, _) => steps.push(step),
            }
        }
        Assertion {
            path: steps,
            operator,
            bound,
        }
    })
}

proptest! {
    #[test]
    fn what_is_shown_reads_as_the_same(assertion in some_assertion()) {
        prop_assert_eq!(parse::parse(&assertion.to_string()), Ok(assertion));
    }

    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        let _ = text.parse::<Assertion>();
    }

    /// Texts composed of the elements of assertions.
    #[test]
    fn no_text_like_an_assertion_makes_it_panic(
        text in r#"(tasks|ledger|workload|runs|complete|name|class|exited|count|\.|\[|\]|=|==|<|>|"|\\|0|1e9|_|-| |true){0,12}"#
    ) {
        if let Ok(assertion) = text.parse::<Assertion>() {
            let _ = assertion.evaluate(&report());
            let _ = assertion.evaluate(&Value::Null);
        }
    }
}
