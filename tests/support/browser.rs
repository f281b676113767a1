//! A real browser without a window, controlled by the `WebDriver` protocol.

use std::net::{Ipv4Addr, TcpStream};

use serde_json::{Value, json};

use super::account::Account;
use super::backend::PATIENCE;
use super::http;
use super::port::free_port;
use super::process::{Server, Signals};
use super::wait_until;

/// The key under which the protocol returns the id of an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// The tab key in the protocol.
pub const TAB: &str = "\u{E004}";
/// The enter key in the protocol.
pub const ENTER: &str = "\u{E007}";
/// The escape key in the protocol.
pub const ESCAPE: &str = "\u{E00C}";

/// A `Chromium` and its driver, which keeps the browser's files in a temporary folder.
#[derive(Debug)]
pub struct Browser {
    driver: Server,
    session: String,
}

impl Browser {
    /// Starts a browser that emulates a phone with a screen of this size in points.
    pub fn phone(width: u32, height: u32) -> Self {
        let screen = json!({"width": width, "height": height, "pixelRatio": 1.5, "mobile": true});
        Self::start(&[], json!({"mobileEmulation": {"deviceMetrics": screen}}))
    }

    /// Starts a browser with a small window that does not run the scripts of pages.
    pub fn without_scripts() -> Self {
        let blocked = json!({"profile.default_content_setting_values.javascript": 2});
        Self::start(&["--window-size=500,844".to_owned()], json!({"prefs": blocked}))
    }

    /// Starts a browser with a window of this size in points.
    pub fn desktop(width: u32, height: u32) -> Self {
        Self::start(&[format!("--window-size={width},{height}")], json!({}))
    }

    fn start(arguments: &[String], mut options: Value) -> Self {
        let account = Account::ourselves();
        let folder = account.folder();
        let port = free_port();
        let mut command = account.command("chromedriver");
        command.arg(format!("--port={}", port.number())).env("TMPDIR", folder.path());
        let ready =
            |server: &Server| TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).is_ok();
        let signals = Signals { stop: "TERM", kill: "KILL" };
        let driver = Server::start(folder, port, command, signals, ready);

        // As root and in containers there is no sandbox, and little shared memory. The pages are trusted.
        let mut all = vec!["--headless=new", "--no-sandbox", "--disable-dev-shm-usage"];
        all.extend(arguments.iter().map(String::as_str));
        options["args"] = json!(all);
        let capabilities =
            json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}});
        let mut browser = Self { driver, session: String::new() };
        let session = browser.order("POST", "", &capabilities);
        browser.session =
            format!("/{}", session["sessionId"].as_str().expect("the answer has an id"));
        browser
    }

    /// Opens a page and waits until it is loaded.
    #[track_caller]
    pub fn open(&self, url: &str) {
        self.order("POST", "/url", &json!({"url": url}));
    }

    /// Types into the field that a CSS selector matches.
    #[track_caller]
    pub fn type_into(&self, field: &str, text: &str) {
        self.order("POST", &format!("{}/value", self.find(field)), &json!({"text": text}));
    }

    #[track_caller]
    pub fn click(&self, element: &str) {
        self.order("POST", &format!("{}/click", self.find(element)), &json!({}));
    }

    /// Returns the visible text of an element.
    #[track_caller]
    pub fn text(&self, element: &str) -> String {
        let text = self.order("GET", &format!("{}/text", self.find(element)), &Value::Null);
        text.as_str().expect("the value is text").to_owned()
    }

    /// Waits until the page has an element that the CSS selector matches.
    #[track_caller]
    pub fn wait_for(&self, element: &str) {
        let script = format!("return document.querySelector({}) !== null", json!(element));
        wait_until(&format!("the page has {element}"), PATIENCE, || self.run(&script) == true);
    }

    /// Runs a script on the page and returns its result.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.order("POST", "/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Presses a key, given by its code in the protocol or its letter, in the focused element.
    #[track_caller]
    pub fn press(&self, key: &str) {
        let strokes = ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key}));
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": strokes});
        self.order("POST", "/actions", &json!({"actions": [keyboard]}));
    }

    /// Sets the preferred color scheme, `dark` or `light`.
    #[track_caller]
    pub fn prefer(&self, scheme: &str) {
        let scheme = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.devtools("Emulation.setEmulatedMedia", &json!({"features": scheme}));
    }

    /// Returns a screenshot of the whole page as a PNG file.
    #[track_caller]
    pub fn screenshot(&self) -> Vec<u8> {
        let picture =
            self.devtools("Page.captureScreenshot", &json!({"captureBeyondViewport": true}));
        base64(picture["data"].as_str().expect("the value is text"))
    }

    /// Runs a command of this browser's `DevTools` protocol, which goes beyond `WebDriver`.
    #[track_caller]
    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.order("POST", "/goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    #[track_caller]
    fn find(&self, element: &str) -> String {
        let by = json!({"using": "css selector", "value": element});
        let found = self.order("POST", "/element", &by);
        format!("/element/{}", found[ELEMENT].as_str().expect("the answer has an id"))
    }

    #[track_caller]
    fn order(&self, method: &str, path: &str, body: &Value) -> Value {
        let port = self.driver.port();
        let url = format!("http://127.0.0.1:{port}/session{}{path}", self.session);
        let (status, mut answer) = http::json(method, &url, body).expect("the driver answers");
        assert_eq!(status, 200, "the driver carries out {method} {path} {body}: {answer:#}");
        answer["value"].take()
    }
}

/// Ends the session: without this, the driver would leave the browser running.
impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let url = format!("http://127.0.0.1:{}/session{}", self.driver.port(), self.session);
            let _ = http::json("DELETE", &url, &Value::Null);
        }
    }
}

/// Decodes base 64.
fn base64(text: &str) -> Vec<u8> {
    let value = |letter: u8| {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        u32::from(value)
    };
    let letters = text.trim_end_matches('=').as_bytes();
    letters
        .chunks(4)
        .flat_map(|letters| {
            let bits = letters.iter().fold(0, |bits, letter| bits << 6 | value(*letter));
            let missing = 4 - letters.len();
            let bytes = (bits << (6 * missing)).to_be_bytes();
            bytes[1..4 - missing].to_vec()
        })
        .collect()
}
