//! `duorelay demo` whose classic connections get back what they send; settings come from the environment.

use std::error::Error;

use duorelay::config::{self, Additions, Command, Machine};
use duorelay::{demo, telemetry};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    if !cfg!(conformance) {
        return Err(
            "built without --cfg conformance, so that nothing echoes: tests/autobahn/run builds it".into()
        );
    }
    let additions = Additions { demo: demo::flags().into(), commands: Vec::new() };
    let launch = config::load(
        ["conformance", "demo"].map(Into::into),
        std::env::vars_os(),
        Machine::this(),
        additions,
    )
    .map_err(|stop| format!("{stop:?}"))?;
    let _telemetry = launch.telemetry().as_ref().map(telemetry::start).transpose()?;
    match launch.command {
        Command::Demo(instance, given) => Ok(demo::run(*instance, &given).await?),
        Command::Serve(_) | Command::Health(_) | Command::Other(_) => Err("no demo was asked for".into()),
    }
}
