//! An HTTP client.

use serde_json::Value;
use ureq::Agent;
use ureq::http::Response;

use super::backend::PATIENCE;

/// A client of one site that follows no redirects and keeps no cookies.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    site: String,
}

/// An HTTP response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The target of a redirect.
    pub location: Option<String>,
    /// All `Content-Type` headers: exactly one in a correct response.
    pub content_types: Vec<String>,
    pub body: String,
}

impl Client {
    pub fn of(site: &str) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // Each request has a connection of its own: a kept one might be closed by the server just when it
            // is used again.
            .max_idle_connections(0)
            .timeout_global(Some(PATIENCE))
            .proxy(None)
            .build();
        Self { agent: config.into(), site: site.to_owned() }
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        let answer = self.agent.get(format!("{}{path}", self.site)).call();
        Answer::from(answer.expect("the site answers"))
    }

    /// Sends a form.
    #[track_caller]
    pub fn post(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        self.post_with(path, fields, &[])
    }

    /// Sends a form with these headers.
    #[track_caller]
    pub fn post_with(
        &self,
        path: &str,
        fields: &[(&str, &str)],
        headers: &[(&str, &str)],
    ) -> Answer {
        let request = self.agent.post(format!("{}{path}", self.site));
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        Answer::from(request.send_form(fields.iter().copied()).expect("the site answers"))
    }
}

impl Answer {
    fn from(mut response: Response<ureq::Body>) -> Self {
        let values = |name| {
            let values = response.headers().get_all(name).iter();
            values.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect::<Vec<_>>()
        };
        Self {
            status: response.status().as_u16(),
            location: values("location").pop(),
            content_types: values("content-type"),
            body: response.body_mut().read_to_string().expect("the body is text"),
        }
    }
}

/// Sends JSON and returns the status and the JSON of the response.
pub fn json(method: &str, url: &str, body: &Value) -> Result<(u16, Value), ureq::Error> {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(2 * PATIENCE))
        .proxy(None)
        .build();
    let agent = Agent::from(config);
    let answer = match method {
        "GET" => agent.get(url).call(),
        "DELETE" => agent.delete(url).call(),
        _ => agent.post(url).content_type("application/json").send(body.to_string()),
    };
    let Answer { status, body, .. } = Answer::from(answer?);
    Ok((status, serde_json::from_str(&body).expect("the body is JSON")))
}
