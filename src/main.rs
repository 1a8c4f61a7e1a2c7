//! Command line, logs, exit code.

use std::error::Error;
use std::io::Write as _;
use std::process::{ExitCode, Termination};

use duorelay::config::{self, Additions, Command, Launch, Machine, Stop};
use duorelay::{demo, health, loadtest, server, telemetry};

#[cfg(conformance)]
compile_error!(
    "a relay that echoes is none: only the example `conformance` is built so (tests/autobahn/run)"
);

/// glibc's allocator keeps what it was once given. A relay which had many slow receivers and is empty again
/// would still be short of memory, and refuse everybody (`tests/contract/memory.rs`). This one gives it back
/// within seconds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc's settings. It looks for this name when it starts (`MALLOC_CONF` in its manual). So they hold as
/// well for a program that `cargo install` builds, which reads no `.cargo/config.toml`.
///
/// Two arenas: threads share them, so that no memory lies idle in those of others. What was freed goes back to the system
/// within a second: a storm of handshakes would otherwise stay in the process's size. Threads keep pieces of up to 4 KiB.
///
/// A reference to an array is what C calls `const char *`: it is thin and never null.
#[expect(unsafe_code, reason = "a name that C code looks for; nothing else of the program has it")]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_SETTINGS: &[u8; 64] =
    b"narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0,lg_tcache_max:12\0";

fn main() -> ExitCode {
    let additions = Additions { demo: demo::flags().into(), commands: vec![loadtest::settings::command()] };
    let launch = config::load(std::env::args_os(), std::env::vars_os(), Machine::this(), additions);
    match launch.and_then(run) {
        Ok(code) => code,
        Err(stop) => {
            // Where nothing can be printed, the exit code still says it.
            let _ = stop.print();
            ExitCode::from(stop.exit_code())
        }
    }
}

fn run(launch: Launch) -> Result<ExitCode, Stop> {
    let telemetry = match launch.telemetry().as_ref().map(telemetry::start).transpose() {
        Ok(telemetry) => telemetry,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            return Ok(ExitCode::FAILURE);
        }
    };
    for notice in &launch.notices {
        tracing::warn!("{notice}");
    }
    let done: Result<ExitCode, Box<dyn Error>> = match launch.command {
        Command::Serve(config) => wait(async { Ok(server::run(*config).await?) }),
        Command::Demo(instance, given) => wait(async { Ok(demo::run(*instance, &given).await?) }),
        Command::Health(check) => wait(async { Ok(health::run(check).await?) }),
        Command::Other(given) => {
            let options = loadtest::settings::read(&given).map_err(Stop::Mistakes)?;
            wait(async { Ok(loadtest::main(options).await) })
        }
    };
    let code = done.unwrap_or_else(|error| {
        tracing::error!(%error, "stopped by an error");
        ExitCode::FAILURE
    });
    if let Some(telemetry) = telemetry {
        telemetry.stop();
    }
    Ok(code)
}

/// Runs a command on a runtime of its own.
fn wait<T: Termination>(
    command: impl Future<Output = Result<T, Box<dyn Error>>>,
) -> Result<ExitCode, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(command);
    // Whatever still runs in the background is not waited for: all that matters has ended.
    runtime.shutdown_background();
    Ok(result?.report())
}
