//! The command `peers`: examines the peers of a configuration. This file contains its arguments, colors and
//! exit codes; `diesel_peers::doctor` does the examination.

mod error;
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
use diesel_peers::doctor::shown::is_printable;

use request::Request;

/// The exit code if no problems were found.
const NO_PROBLEMS: u8 = 0;
/// The exit code if a peer is not ready, or the peers differ in a way that matters.
const PROBLEMS: u8 = 1;
/// The exit code if the arguments or the configuration are invalid, or the report cannot be written. (clap uses
/// the same code.)
const FAILURE: u8 = 2;

/// The default interval of `--watch` in seconds. The help text repeats this number.
const DEFAULT_INTERVAL: &str = "2";

/// Clears a terminal and moves the cursor to the top.
const CLEAR: &str = "\x1b[H\x1b[2J";
/// Clears a terminal's line and moves the cursor to its start.
const CLEAR_LINE: &str = "\r\x1b[K";

/// Examine database peers that should be equivalent.
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

/// Log in to all peers at once, as the pool does, and report where they differ.
///
/// Peers are read from a URL, a file, the environment, or a combination.
///
/// Exit codes: 0 no problems were found; 1 a peer is not ready, or the peers differ in a way that matters; 2
/// the arguments or the configuration are invalid, or the report cannot be written.
#[derive(Args)]
#[command(
    override_usage = "peers check [URL] [--config <FILE> [--table <PATH>]] [--env <PREFIX>] \
                            [--json | --watch [<SECONDS>]]"
)]
#[command(group(ArgGroup::new("source").args(["url", "config", "env"]).required(true).multiple(true)))]
struct Check {
    /// One URL with several hosts, such as `mysql://app@db0,db1/shop`. Overrides the file and the
    /// environment. (Other users of this machine can see command-line arguments. So put a password in the file
    /// or the environment; there it overrides the URL's.)
    url: Option<String>,

    /// Read `url` or `peers`, and any other settings, from this TOML file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Read this table of the file, such as `default.databases.shop` in `Rocket.toml` [default: the whole
    /// file].
    #[arg(long, value_name = "PATH", requires = "config")]
    table: Option<String>,

    /// Read settings from environment variables with this prefix, such as `SHOP_DB_URL` for `SHOP_DB_`. They
    /// override the file.
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    env: Option<String>,

    /// Print the report as JSON.
    #[arg(long)]
    json: bool,

    /// Repeat the check every SECONDS until interrupted [default: 2].
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = DEFAULT_INTERVAL)]
    #[arg(conflicts_with = "json", value_parser = seconds)]
    watch: Option<Duration>,
}

fn main() -> ExitCode {
    let Arguments { command: Command::Check(check) } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return report_usage(&error),
    };
    match check.run() {
        Ok(true) => NO_PROBLEMS.into(),
        Ok(false) => PROBLEMS.into(),
        Err(error) => {
            report_error(&*error);
            FAILURE.into()
        }
    }
}

/// Prints clap's help or error. In an error, arguments that may contain a secret are replaced.
fn report_usage(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        drop(io::stdout().write_all(text.as_bytes()));
        return NO_PROBLEMS.into();
    }
    let arguments = env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
    let value = |argument: String| match argument.split_once('=') {
        Some((option, value)) if option.starts_with('-') => value.to_owned(),
        _ => argument,
    };
    let secrets = arguments.map(value).filter(|value| value.contains(['@', ':', '/', '=', ' ']));
    let text = secrets.fold(text, |text, secret| text.replace(&secret, "***"));
    let text = match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) => text.replace(&format!("'{value}'"), "'***'"),
        _ => text,
    };
    // An unexpected argument may be the end of a password that contains a space.
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
        drop(writeln!(io::stderr(), "\nWrite several hosts in one URL: mysql://app@db0,db1/shop"));
    }
    FAILURE.into()
}

/// Prints an error on the standard error output. A name in it cannot control the terminal.
fn report_error(error: &dyn Error) {
    let printable = |letter: char| letter == '\n' || is_printable(letter);
    let text: String = error.to_string().chars().filter(|letter| printable(*letter)).collect();
    drop(writeln!(io::stderr(), "peers: {text}"));
}

fn prefix(text: &str) -> Result<String, &'static str> {
    let is_name = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    (is_name && !text.is_empty())
        .then(|| text.to_owned())
        .ok_or("use only letters, digits and `_`, as in `SHOP_DB_`")
}

fn seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds
        .filter(|seconds| !seconds.is_zero())
        .ok_or("use a positive number of seconds, and place a URL before `--watch`")
}

impl Check {
    /// Examines the peers, and returns whether the last report contains no problems.
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
            let report = request.examine(show_progress)?;
            let text = if self.json { report.to_json() + "\n" } else { table(&report) };
            print(&text)?;
            return Ok(report.is_ok());
        };
        let mut is_repetition = false;
        loop {
            match request.examine(show_progress) {
                Ok(report) => {
                    is_repetition = true;
                    let clear = if io::stdout().is_terminal() { CLEAR } else { "" };
                    if !print(&format!("{clear}{}\n", table(&report)))? {
                        return Ok(report.is_ok());
                    }
                }
                // Somebody may be editing the file.
                Err(error) if is_repetition => report_error(&error),
                Err(error) => return Err(error.into()),
            }
            // Waits for the interval.
            let _ = after(interval).recv();
        }
    }
}

/// Returns the table, in colors if the standard output is a terminal and colors are not disabled.
fn table(report: &Report) -> String {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
    if io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb {
        report.colored().to_string()
    } else {
        report.to_string()
    }
}

/// Shows the names of the peers that have not completed, if the standard error output is a terminal.
fn show_progress(waiting: &[String]) {
    let mut stderr = io::stderr();
    if !stderr.is_terminal() {
        return;
    }
    let text = match waiting {
        [] => String::new(),
        waiting => format!("waiting for {}", waiting.join(", ")),
    };
    // Progress is optional, so an error is ignored.
    drop(write!(stderr, "{CLEAR_LINE}{text}").and_then(|()| stderr.flush()));
}

/// Writes to the standard output. Returns whether its reader is still there.
fn print(text: &str) -> Result<bool, String> {
    let mut stdout = io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(format!("cannot write the report: {error}")),
    }
}
