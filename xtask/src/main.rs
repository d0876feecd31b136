//! Every chore of this repository, as `cargo xtask CHORE`.
//!
//! One file a chore. What they share: [`toolchain`] (a compiler and linker for BPF), [`ebpf`] (calling them),
//! [`process`] (running commands) and [`stamp`] (what the committed BPF object was built from).

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nix::sys::signal::{SigHandler, Signal, signal};

mod bench;
mod build_ebpf;
mod clippy_ebpf;
mod dist;
mod ebpf;
mod fuzz;
mod kernels;
mod msrv;
mod process;
mod run;
mod sbom;
mod setup;
#[path = "../../ctxtrace/build/stamp.rs"]
mod stamp;
mod strip;
mod test;
mod test_web;
mod tokio_releases;
mod toolchain;
mod vendor_web;

/// The chores of ctxtrace's repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    /// What to do.
    #[command(subcommand)]
    chore: Chore,
}

/// One chore.
#[derive(Debug, Subcommand)]
enum Chore {
    /// Build the BPF object that is committed in ctxtrace/bpf, and its stamp
    BuildEbpf(build_ebpf::Args),
    /// Lint the BPF programs, as the machine they are for
    ClippyEbpf,
    /// Install what `build-ebpf` and `clippy-ebpf` need, and the programs that the tests trace
    Setup(setup::Args),
    /// Build ctxtrace and run it as root
    Run(run::Args),
    /// Run every test, the privileged ones as root
    Test(test::Args),
    /// Run the fuzz targets
    Fuzz(fuzz::Args),
    /// Check that the stated Rust version is one that all dependencies can be built with
    Msrv,
    /// Make the release archive, its checksums and its bill of materials
    Dist,
    /// Open HTML reports in a headless browser and use them
    TestWeb,
    /// Make the libraries of the HTML report anew, from npm
    VendorWeb(vendor_web::Args),
    /// Measure
    Bench(bench::Args),
}

fn main() -> ExitCode {
    stop_ignoring_interrupts();
    let done = match Args::parse().chore {
        Chore::Test(args) => return exit_code(test::main(&args)),
        Chore::BuildEbpf(args) => build_ebpf::main(&args),
        Chore::ClippyEbpf => clippy_ebpf::main(),
        Chore::Setup(args) => setup::main(&args),
        Chore::Run(args) => run::main(&args),
        Chore::Fuzz(args) => fuzz::main(&args),
        Chore::Msrv => msrv::main(),
        Chore::Dist => dist::main(),
        Chore::TestWeb => test_web::main(),
        Chore::VendorWeb(args) => vendor_web::main(&args),
        Chore::Bench(args) => bench::main(&args),
    };
    exit_code(done.map(|()| ExitCode::SUCCESS))
}

/// Gives the signals of the keyboard their default action, which every program inherits that a chore starts, tools that are to end at
/// SIGINT among them. A shell without job control starts a command that ends with `&` with both ignored.
fn stop_ignoring_interrupts() {
    for interrupt in [Signal::SIGINT, Signal::SIGQUIT] {
        // SAFETY: no handler is installed, and there is one thread.
        unsafe { signal(interrupt, SigHandler::SigDfl) }.expect("a signal that can be caught");
    }
}

fn exit_code(done: anyhow::Result<ExitCode>) -> ExitCode {
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
