//! A minimal web server for a status page without a framework.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use diesel_peers::status_page::StatusPage;

/// A web server with one page, at every path.
#[derive(Debug)]
pub struct Site {
    page: Arc<Mutex<StatusPage>>,
    port: u16,
}

impl Site {
    /// Serves the page until the test ends.
    pub fn start(page: StatusPage) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = listener.local_addr().expect("the listener is bound").port();
        let page = Arc::new(Mutex::new(page));
        let served = page.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                // Browsers open connections in advance: each one has a thread of its own.
                thread::spawn(move || answer(&stream, &served));
            }
        });
        Self { page, port }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// Serves another page from now on, as after a restart.
    pub fn show(&self, page: StatusPage) {
        *self.page.lock().unwrap_or_else(PoisonError::into_inner) = page;
    }
}

fn answer(mut stream: &TcpStream, page: &Mutex<StatusPage>) -> Option<()> {
    let mut request = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        request.read_line(&mut line).ok()?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let header = |name: &str| {
        let mut headers = lines.iter().filter_map(|line| line.split_once(": "));
        headers.find(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    };
    let length = header("Content-Length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    request.read_exact(&mut body).ok()?;

    let mut start = lines.first()?.split(' ');
    let (method, target) = (start.next()?, start.next()?);
    let query = target.split_once('?').map(|(_, query)| query);
    let page = page.lock().unwrap_or_else(PoisonError::into_inner);
    let answer = page.respond(method, query, header, &body);
    let headers = answer.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
    let headers: String = headers.collect();
    let (status, body) = (answer.status, answer.body);
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} So\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .ok()
}
