//! A client of the REST API that knows nothing but HTTP and JSON.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::contract::{Answered, Contract};

/// No answer takes that long, on a machine that has time for it.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// A logged-in client.
#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

/// What the server answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Answer {
    /// The body, if the status is `wanted`.
    pub fn expect(self, wanted: u16) -> anyhow::Result<Value> {
        ensure!(
            self.status == wanted,
            "answered {} instead of {wanted}: {}",
            self.status,
            self.body
        );
        Ok(self.body)
    }
}

impl Api {
    /// A client that is not logged in. `base` is like `http://127.0.0.1:8112`.
    pub fn new(base: &str) -> anyhow::Result<Api> {
        let http = reqwest::Client::builder().timeout(ANSWER_MAX).build()?;
        Ok(Api {
            http,
            base: base.to_owned(),
            token: None,
        })
    }

    /// Where the server is.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The token of the last login.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Waits until catalog and Kafka are reachable for the server.
    pub async fn wait_ready(&self, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let answer = self.get("/ready").await;
            match answer {
                Ok(Answer { status: 200, .. }) => return Ok(()),
                other if Instant::now() > deadline => {
                    bail!("{} is not ready after {limit:?}: {other:?}", self.base)
                }
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Logs in; the client's further requests carry the token.
    pub async fn login(&mut self, username: &str, password: &str) -> anyhow::Result<Value> {
        let answer = self
            .post(
                "/v1/auth/login",
                json!({"username": username, "password": password}),
            )
            .await?
            .expect(200)
            .context("login")?;
        let token = answer["token"].as_str().context("login gave no token")?;
        self.token = Some(token.to_owned());
        Ok(answer)
    }

    /// GET.
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.request(Method::GET, path, None).await
    }

    /// POST with a JSON body.
    pub async fn post(&self, path: &str, body: Value) -> anyhow::Result<Answer> {
        self.request(Method::POST, path, Some(body)).await
    }

    /// PUT with a JSON body.
    pub async fn put(&self, path: &str, body: Value) -> anyhow::Result<Answer> {
        self.request(Method::PUT, path, Some(body)).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> anyhow::Result<Answer> {
        self.request(Method::DELETE, path, None).await
    }

    /// Any request. A body that is no JSON comes back as a string. Whatever is answered has to be
    /// as documented.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<Answer> {
        let mut request = self
            .http
            .request(method.clone(), format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = &body {
            request = request.json(body);
        }
        let response = request
            .send()
            .await
            .with_context(|| format!("{method} {path}"))?;
        let status = response.status().as_u16();
        let content_type = response.headers().get("content-type");
        let content_type = content_type.and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_owned();
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Contract::kept()?.check(&Answered {
            method: &method.as_str().to_lowercase(),
            path,
            status,
            content_type: &content_type,
            body: &body,
        })?;
        Ok(Answer { status, body })
    }
}
