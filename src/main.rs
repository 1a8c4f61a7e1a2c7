//! Command line, logs, exit code.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use duorelay::config::{self, Command, Machine};
use duorelay::{demo, health, loadtest, server, telemetry};

#[cfg(conformance)]
compile_error!(
    "a relay that echoes is none: only the example `conformance` is built so (tests/autobahn/run)"
);

/// glibc's allocator keeps what it was once given, so that a relay which had many slow receivers and is empty again would
/// still be short of memory, and refuse everybody (`tests/contract/memory.rs`). This one gives it back within seconds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let launch = match config::load(std::env::args_os(), std::env::vars_os(), Machine::this()) {
        Ok(launch) => launch,
        Err(stop) => {
            // Where nothing can be printed, the exit code still tells.
            let _ = stop.print();
            return ExitCode::from(stop.exit_code());
        }
    };
    let telemetry = match launch.telemetry().as_ref().map(telemetry::start).transpose() {
        Ok(telemetry) => telemetry,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            return ExitCode::FAILURE;
        }
    };
    for notice in &launch.notices {
        tracing::warn!("{notice}");
    }
    let code = run(launch.command).unwrap_or_else(|error| {
        tracing::error!(%error, "stopped by an error");
        ExitCode::FAILURE
    });
    if let Some(telemetry) = telemetry {
        telemetry.stop();
    }
    code
}

fn run(command: Command) -> Result<ExitCode, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        match command {
            Command::Serve(config) => server::run(*config).await?,
            Command::Demo(options) => demo::run(*options).await?,
            Command::Health(check) => health::run(check).await?,
            Command::Loadtest(options) => return Ok(loadtest::main(*options).await),
        }
        Ok(ExitCode::SUCCESS)
    });
    // Whatever still runs in the background is not waited for: all that matters has ended.
    runtime.shutdown_background();
    result
}
