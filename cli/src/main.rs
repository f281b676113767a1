//! The command `peers`: examines the peers of a configuration. All that it finds out is
//! `diesel_peers::doctor`'s; here are its arguments, colors and exit codes.

mod redaction;
mod request;
mod table;

use std::env;
use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgGroup, Args, Parser, Subcommand};
use crossbeam_channel::after;
use diesel_peers::doctor::Report;

use request::Request;

/// All is well.
const WELL: u8 = 0;
/// A peer is not ready, or differs from the others where it should not.
const TROUBLE: u8 = 1;
/// The arguments or the configuration are wrong, or nothing can be told. (It is clap's own code as well.)
const WRONG: u8 = 2;

/// How often `--watch` looks where it is not said, in seconds.
const WATCH: &str = "2";

/// Clears a terminal, and begins at its top.
const CLEAR: &str = "\x1b[H\x1b[2J";
/// Clears a terminal's line, and begins at its start.
const CLEAR_LINE: &str = "\r\x1b[K";

/// Examines database peers that should be equivalent.
#[derive(Parser)]
#[command(name = "peers", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(Check),
}

/// Logs in to every peer at once, as the pool does, and shows where they differ.
///
/// The peers stand in a URL, a file or the environment, or in several of these.
///
/// Exit codes: 0 all is well; 1 a peer is not ready, or they differ in what matters; 2 the arguments or
/// the configuration are wrong, or the report cannot be written.
#[derive(Args)]
#[command(
    override_usage = "peers check [URL] [--config <FILE> [--table <PATH>]] [--env <PREFIX>] \
                            [--json | --watch [<SECONDS>]]"
)]
#[command(group(ArgGroup::new("where").args(["url", "config", "env"]).required(true).multiple(true)))]
struct Check {
    /// One URL with several hosts: `mysql://app@db0,db1/shop`. It counts more than a file and the
    /// environment. (Others on this machine can see it while this runs: a password is better in a file or
    /// the environment, where it counts more than the URL's.)
    url: Option<String>,

    /// A TOML file with `url` or `peers`, and any settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The table of the file in which they stand, as `default.databases.shop` in a `Rocket.toml`.
    #[arg(long, value_name = "PATH", requires = "config")]
    table: Option<String>,

    /// Settings in environment variables that begin with this, as `SHOP_DB_URL` with `SHOP_DB_`. They count
    /// more than a file's.
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    env: Option<String>,

    /// Prints JSON, for machines.
    #[arg(long)]
    json: bool,

    /// Looks again and again, so many seconds apart, until it is interrupted.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = WATCH)]
    #[arg(conflicts_with = "json", value_parser = seconds)]
    watch: Option<Duration>,
}

fn main() -> ExitCode {
    let Arguments { command: Command::Check(check) } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    match check.run() {
        Ok(true) => WELL.into(),
        Ok(false) => TROUBLE.into(),
        Err(error) => {
            complain(&*error);
            WRONG.into()
        }
    }
}

/// As clap does it, without what may be a URL.
fn refuse(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        drop(io::stdout().write_all(text.as_bytes()));
        return WELL.into();
    }
    let given = env::args_os().skip(1).map(|given| given.to_string_lossy().into_owned());
    let value = |given: String| match given.split_once('=') {
        Some((option, value)) if option.starts_with('-') => value.to_owned(),
        _ => given,
    };
    let secrets = given.map(value).filter(|value| value.contains(['@', ':', '/', '=', ' ']));
    let text = secrets.fold(text, |text, secret| text.replace(&secret, "***"));
    let text = match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) => text.replace(&format!("'{value}'"), "'***'"),
        _ => text,
    };
    // A word that stands alone may be the end of a password.
    let stray = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(stray)) if error.kind() == ErrorKind::UnknownArgument => {
            Some(stray).filter(|stray| !stray.starts_with('-'))
        }
        _ => None,
    };
    let text = match stray {
        Some(stray) => text.replace(&format!("'{stray}'"), "'***'"),
        None => text,
    };
    drop(io::stderr().write_all(text.as_bytes()));
    if stray.is_some_and(|stray| stray.contains(['/', ':', ','])) {
        drop(writeln!(io::stderr(), "\nSeveral hosts stand in one URL: mysql://app@db0,db1/shop"));
    }
    WRONG.into()
}

/// Says why something went wrong.
fn complain(error: &dyn Error) {
    drop(writeln!(io::stderr(), "peers: {error}"));
}

fn prefix(text: &str) -> Result<String, &'static str> {
    let is_prefix = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_prefix.then(|| text.to_owned()).ok_or("give letters, digits and `_`, as `SHOP_DB_`")
}

fn seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds
        .filter(|seconds| !seconds.is_zero())
        .ok_or("give a number of seconds; a URL stands before")
}

impl Check {
    /// Whether all is well.
    fn run(self) -> Result<bool, Box<dyn Error>> {
        let mut request = Request::new();
        if let Some(file) = self.config {
            request = request.file(file);
        }
        if let Some(table) = self.table {
            request = request.table(table);
        }
        if let Some(url) = self.url {
            request = request.url(url);
        }
        if let Some(prefix) = self.env {
            request = request.env(prefix);
        }
        let Some(interval) = self.watch else {
            let report = request.examine(tell)?;
            let text = if self.json { report.to_json() + "\n" } else { shown(&report) };
            print(&text)?;
            return Ok(report.is_ok());
        };
        let mut was_read = false;
        loop {
            match request.examine(tell) {
                Ok(report) => {
                    was_read = true;
                    let clear = if io::stdout().is_terminal() { CLEAR } else { "" };
                    if !print(&format!("{clear}{}\n", shown(&report)))? {
                        return Ok(report.is_ok());
                    }
                }
                // Somebody may be writing the file.
                Err(error) if was_read => complain(&error),
                Err(error) => return Err(error.into()),
            }
            // It only comes when the time is over.
            let _ = after(interval).recv();
        }
    }
}

/// In colors where somebody looks who wants them.
fn shown(report: &Report) -> String {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
    if io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb {
        report.colored().to_string()
    } else {
        report.to_string()
    }
}

/// Who is waited for, where somebody looks.
fn tell(waiting: &[String]) {
    let mut stderr = io::stderr();
    if !stderr.is_terminal() {
        return;
    }
    let text = match waiting {
        [] => String::new(),
        waiting => format!("waiting for {}", waiting.join(", ")),
    };
    // Nobody has to see it.
    drop(write!(stderr, "{CLEAR_LINE}{text}").and_then(|()| stderr.flush()));
}

/// Whether anybody is there to read it.
fn print(text: &str) -> Result<bool, String> {
    let mut stdout = io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(format!("the report cannot be written: {error}")),
    }
}
