//! The development tasks of this repository, as `cargo xtask CHORE`.
//!
//! Each chore has its own file, or is a crate of its own that [`forward`] runs. They share [`toolchain`] (finds a compiler and a
//! linker for BPF), [`ebpf`] (runs them), [`process`] (runs commands) and [`stamp`] (records what the committed BPF object was built
//! from).

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nix::sys::signal::{SigHandler, Signal, signal};
use xtask_process as process;

mod build_ebpf;
mod clippy_ebpf;
mod ebpf;
mod forward;
mod fuzz;
mod kernels;
mod listings;
mod msrv;
mod run;
mod setup;
#[path = "../../ctxtrace/build/stamp.rs"]
mod stamp;
mod strip;
mod test;
mod test_web;
mod tokio_releases;
mod toolchain;
mod vendor_web;
mod workspace;

/// Development tasks of ctxtrace's repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    /// The task to run.
    #[command(subcommand)]
    chore: Chore,
}

/// A chore with its options.
#[derive(Debug, Subcommand)]
enum Chore {
    /// Build the BPF object that is committed in ctxtrace/bpf, and its stamp
    BuildEbpf(build_ebpf::Args),
    /// Lint the BPF programs, compiled for BPF
    ClippyEbpf,
    /// Install the tools for `build-ebpf` and `clippy-ebpf`, and the programs that the tests need
    Setup(setup::Args),
    /// Build ctxtrace and run it as root
    Run(run::Args),
    /// Run every test, the privileged ones as root
    Test(test::Args),
    /// Run the fuzz targets
    Fuzz(fuzz::Args),
    /// Check that all dependencies can be built with the minimum supported Rust version
    Msrv,
    /// Make the listings in the documents from saved results
    Listings(listings::Args),
    /// Make the release archive, its checksums and its bill of materials
    Dist,
    /// Test HTML reports in a headless browser
    TestWeb,
    /// Rebuild the JavaScript libraries of the HTML report from npm packages
    VendorWeb(vendor_web::Args),
    /// Measure the cost of ctxtrace
    #[command(disable_help_flag = true)]
    Bench(forward::Args),
}

fn main() -> ExitCode {
    stop_ignoring_interrupts();
    let done = match Args::parse().chore {
        Chore::Test(args) => return process::exit_code(test::main(&args)),
        Chore::BuildEbpf(args) => build_ebpf::main(&args),
        Chore::ClippyEbpf => clippy_ebpf::main(),
        Chore::Setup(args) => setup::main(&args),
        Chore::Run(args) => run::main(&args),
        Chore::Fuzz(args) => fuzz::main(&args),
        Chore::Msrv => msrv::main(),
        Chore::Listings(args) => listings::main(&args),
        Chore::Dist => forward::main(&["--package", "ctxtrace-dist"], &[]),
        Chore::TestWeb => test_web::main(),
        Chore::VendorWeb(args) => vendor_web::main(&args),
        Chore::Bench(args) => forward::main(&["--release", "--package", "ctxtrace-bench"], &args.args),
    };
    process::exit_code(done.map(|()| ExitCode::SUCCESS))
}

/// Restores the default action of the keyboard's signals. The programs that a chore starts inherit it, among them tools that are
/// ended by SIGINT. A shell without job control ignores both signals in a command that ends with `&`.
fn stop_ignoring_interrupts() {
    for interrupt in [Signal::SIGINT, Signal::SIGQUIT] {
        // SAFETY: no handler is installed, and there is one thread.
        unsafe { signal(interrupt, SigHandler::SigDfl) }.expect("the action of the signal can be set");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_benchmarks_get_all_their_options() {
        for options in [&[][..], &["-h"], &["report", "--json", "a.json", "--help"]] {
            let words = ["cargo xtask", "bench"].iter().chain(options);
            let Chore::Bench(forwarded) = Args::parse_from(words).chore else {
                panic!("another chore than `bench` was parsed");
            };
            assert_eq!(forwarded.args, options);
        }
    }
}
