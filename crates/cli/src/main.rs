//! The program `loralei`: reads the command line, runs the command, prints, and ends with the command's exit code.
//!
//! Results go to stdout, everything else to stderr. Nothing below this crate prints.

mod args;
mod commands;
mod log;
mod report;
mod usage;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;
use indicatif::MultiProgress;

use crate::args::{Arguments, BenchCommand, Command, DatasetCommand, ModelCommand, VerifyCommand};
use crate::report::{Reporter, exit_code, print_error};

/// candle walks and drops its graph by recursion, a frame or more per operation of the model.
const STACK_BYTES: usize = 256 << 20;

fn main() -> ExitCode {
    keep_candle_single();
    keep_freed_memory();
    let arguments = Arguments::parse();
    let pool = rayon::ThreadPoolBuilder::new().stack_size(STACK_BYTES).thread_name(|i| format!("loralei-{i}"));
    if let Err(error) = pool.build_global() {
        print_error(&error.into());
        return ExitCode::FAILURE;
    }
    // The command runs on a thread of the pool: one from outside would be put to sleep and woken up for every operation.
    let outcome = catch_unwind(AssertUnwindSafe(|| rayon::scope(|_| run(arguments))));
    match outcome {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            print_error(&error);
            ExitCode::from(exit_code(&error))
        }
        // The panic has printed its own message.
        Err(_) => ExitCode::FAILURE,
    }
}

/// candle's own threads wait for work by spinning, on the cores that our operations need.
/// What is left to candle are sums and copies, for which one core is enough.
#[allow(unsafe_code)]
fn keep_candle_single() {
    const THREADS: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(THREADS).is_none() {
        // SAFETY: called first thing in `main`, while there is no other thread that could read the environment.
        unsafe { std::env::set_var(THREADS, "1") };
    }
}

/// A step frees what the next one asks for again: given back to the system in between, it would be cleared and mapped anew,
/// page by page, each time. One arena, because what one thread frees another one takes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn keep_freed_memory() {
    // SAFETY: settings of the allocator, made while there is no other thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let bars = MultiProgress::new();
    log::start(&bars);
    let mut reporter = Reporter::new(bars);
    let done = match arguments.command {
        Command::Init(init) => commands::init::run(&init, &mut reporter),
        Command::ImportConfig(import) => commands::import_config::run(&import, &mut reporter),
        Command::Train(train) => return commands::train::run(&train, &mut reporter),
        Command::Run(command) => commands::run::run(&command, &mut reporter),
        Command::Generate(generate) => commands::generate::run(&generate, &mut reporter),
        Command::Dataset(DatasetCommand::Check(check)) => commands::dataset::check(&check, &mut reporter),
        Command::Model(ModelCommand::Info(info)) => commands::model::info(&info, &mut reporter),
        Command::Model(ModelCommand::Convert(convert)) => commands::model::convert(&convert, &mut reporter),
        Command::Adapter(command) => commands::adapter::run(&command, &mut reporter),
        Command::Verify(VerifyCommand::Step(step)) => commands::verify::step(&step, &mut reporter),
        Command::Verify(VerifyCommand::Ops(ops)) => commands::verify::ops(&ops),
        Command::Verify(VerifyCommand::Leak(leak)) => commands::verify::leak(&leak, &mut reporter),
        Command::Bench(BenchCommand::Step(step)) => commands::bench::step(&step, &mut reporter),
        Command::Doctor(doctor) => commands::doctor::run(&doctor),
    };
    done.map(|()| ExitCode::SUCCESS)
}
