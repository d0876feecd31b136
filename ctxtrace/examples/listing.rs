//! Prints the table of a result that was saved as JSON. `cargo xtask listings` makes the listings of the documents with it.
//!
//! `listing suite FILE.json` prints the table of `ctxtrace suite`, `listing explain FILE.json` that of `ctxtrace explain`.

use std::error::Error;

use ctxtrace_report::table::Style;
use ctxtrace_report::{explain, suite};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [command, path] = arguments.as_slice() else {
        return Err("usage: listing suite|explain FILE.json".into());
    };
    let json = std::fs::read_to_string(path)?;
    let style = Style { color: false };
    let table = match command.as_str() {
        "suite" => suite::render(&serde_json::from_str(&json)?, style),
        "explain" => explain::render(&serde_json::from_str(&json)?, style),
        other => return Err(format!("there is no listing of `{other}`").into()),
    };
    print(&table);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the table is the output of this program")]
fn print(text: &str) {
    print!("{text}");
}
