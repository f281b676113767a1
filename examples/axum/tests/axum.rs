//! The example serves requests, and its operator page.

#![cfg(target_os = "linux")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;

/// A process that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // The process may have ended.
        let _ = self.0.kill();
        self.0.wait().expect("the process is a child of this one");
    }
}

/// Sends an empty `POST` request, and returns the status and the body of the response.
fn post(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("the server reads the request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the server answers");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let text = answer.split_once("\r\n\r\n").map(|(_, text)| text.to_owned());
    status.zip(text).unwrap_or_else(|| panic!("the answer is an HTTP response: {answer}"))
}

/// Starts the example with its files in this folder, and returns the address at which it listens.
fn axum_in(folder: &Path) -> (Running, String) {
    let mut example = Command::new(env!("CARGO_BIN_EXE_axum-example"));
    let example = example.env("TMPDIR", folder).stdout(Stdio::piped());
    let mut running = Running(example.spawn().expect("the example starts"));
    let mut line = String::new();
    let output = running.0.stdout.take().expect("the output is piped");
    BufReader::new(output).read_line(&mut line).expect("the output is text");
    let address =
        line.trim().strip_prefix("listening on ").expect("the address is printed").to_owned();
    (running, address)
}

#[test]
fn axum_example_serves_refuses_when_busy_and_stops_cleanly() {
    let folder = tempfile::tempdir().expect("a temporary folder can be created");
    let (mut running, address) = axum_in(folder.path());

    for visit in 1..=10 {
        let (status, text) = post(&address, "/visits");
        assert_eq!(status, 200, "{text}");
        assert!(text.starts_with(&format!("visit {visit}, served by db")), "{text}");
    }
    assert_eq!(post(&address, "/nowhere").0, 404);

    // As long as the database is locked, each request that has a connection keeps it.
    let mut files = fs::read_dir(folder.path()).expect("the test owns the folder");
    let data = files.next().expect("the example has a folder").expect("the test owns the folder");
    let data = data.path().join("app.db");
    let mut lock =
        SqliteConnection::establish(&data.display().to_string()).expect("the file exists");
    lock.batch_execute("PRAGMA busy_timeout = 30000; BEGIN EXCLUSIVE")
        .expect("no request is running");
    let (answer, answers) = mpsc::channel();
    for _ in 0..8 {
        let (address, answer) = (address.clone(), answer.clone());
        let request = move || answer.send(post(&address, "/visits").0).expect("the test receives");
        thread::Builder::new().spawn(request).expect("a thread can be started");
    }
    drop(answer);
    let first: Vec<_> = answers.iter().take(4).collect();
    assert_eq!(first, [503; 4], "requests without one of the pool's four connections are refused");
    lock.batch_execute("COMMIT").expect("the lock is held");
    assert_eq!(answers.iter().collect::<Vec<_>>(), [200; 4], "requests with a connection succeed");
    let (_, text) = post(&address, "/visits");
    assert!(text.starts_with("visit 15,"), "a refused request has no effect: {text}");

    let interrupt = ["-c", "kill -s INT $0", &running.0.id().to_string()];
    assert!(Command::new("sh").args(interrupt).status().expect("a shell is installed").success());
    let status = running.0.wait().expect("the process is a child of this one");
    assert!(status.success(), "the example ends in good order when it is interrupted");
    let files = fs::read_dir(folder.path()).expect("the test owns the folder").count();
    assert_eq!(files, 0, "the example removes its files");
}

#[test]
fn axum_example_serves_the_status_page() {
    let folder = tempfile::tempdir().expect("a temporary folder can be created");
    let (_running, address) = axum_in(folder.path());
    let browser = support::browser::Browser::desktop(1280, 720);
    browser.open(&format!("http://{address}/operator"));
    browser.wait_for(".live");
    browser.click("tbody[data-peer='db1'] button");
    support::wait_until("the page shows the drained peer", support::backend::PATIENCE, || {
        // The connections of a drained SQLite peer are closed as the pool is used.
        post(&address, "/visits");
        let state = "return document.querySelector('[data-peer=db1] [data-is=state]').innerText";
        browser.run(state) == "drained"
    });
    assert_eq!(browser.text("#notice"), "", "the page shows no error");

    let site = support::http::Client::of(&format!("http://{address}"));
    for (path, content_type) in [("", "text/html"), ("?json", "application/json")] {
        let answer = site.get(&format!("/operator{path}"));
        assert_eq!(answer.content_types, [format!("{content_type}; charset=utf-8")]);
    }
    assert_eq!(site.get("/nowhere").status, 404);
}

/// The documentation cannot include the file, which is not a part of the library's package.
#[test]
fn documentation_of_the_status_page_contains_this_example() {
    let code = include_str!("../src/operator.rs");
    let code: Vec<_> = code.lines().skip_while(|line| line.starts_with("//!")).collect();
    let code = code.join("\n");
    let module = include_str!("../../../src/status_page.rs");
    let documentation = module.lines().map_while(|line| line.strip_prefix("//!"));
    let documentation = documentation.map(|line| line.strip_prefix(' ').unwrap_or(line));
    let documentation: Vec<_> = documentation.collect();
    assert!(
        documentation.join("\n").contains(code.trim()),
        "the documentation contains the code of src/operator.rs"
    );
}
