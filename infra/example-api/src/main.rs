//! A small API for Palisade to protect: a signed-in user keeps notes.
//!
//! `POST /notes` keeps one and returns a receipt, which is the note's id signed with the secret; `GET /notes` lists one's
//! own. API Gateway has authenticated the user and checked the body's schema before we run; the body is read strictly here
//! too, because a schema is only as good as the last deployment. Nothing that a user sent is logged.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_config::BehaviorVersion;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use lambda_runtime::{Error, LambdaEvent, service_fn};
use ring::hmac;
use serde::Deserialize;
use serde_json::{Value, json};

/// As many notes as an answer may hold.
const NOTES_MAX: i32 = 50;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let api = Arc::new(Api::new().await?);
    lambda_runtime::run(service_fn(move |event: LambdaEvent<Value>| {
        let api = api.clone();
        async move { Ok::<_, Error>(api.answer(&event.payload).await) }
    }))
    .await
}

struct Api {
    notes: aws_sdk_dynamodb::Client,
    table: String,
    key: hmac::Key,
}

/// What `POST /notes` takes; the same as the schema in template.yaml.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewNote {
    title: String,
    text: String,
}

impl Api {
    /// The secret is read once a process: a rotated one is used by the next processes, and Lambda replaces them within hours.
    async fn new() -> Result<Api, Error> {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .build_https();
        let config = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .load()
            .await;
        let secrets = aws_sdk_secretsmanager::Client::new(&config);
        let secret = secrets
            .get_secret_value()
            .secret_id(std::env::var("SECRET")?)
            .send()
            .await?;
        let secret = secret.secret_string().ok_or("the secret is not text")?;
        Ok(Api {
            notes: aws_sdk_dynamodb::Client::new(&config),
            table: std::env::var("TABLE")?,
            key: hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()),
        })
    }

    async fn answer(&self, event: &Value) -> Value {
        // Put there by API Gateway's authorizer, and by nobody else: clients can't set the request context.
        let Some(user) = event["requestContext"]["authorizer"]["claims"]["sub"].as_str() else {
            return response(401, &json!({"error": "sign in first"}));
        };
        let answered = match event["httpMethod"].as_str() {
            Some("POST") => self.keep(user, event["body"].as_str().unwrap_or_default()).await,
            Some("GET") => self.list(user).await,
            _ => return response(405, &json!({"error": "there are GET and POST"})),
        };
        answered.unwrap_or_else(|error| {
            // The service's error, which names actions and tables, and no content.
            println!("{}", json!({"type": "error", "why": error.to_string()}));
            response(500, &json!({"error": "try again later"}))
        })
    }

    async fn keep(&self, user: &str, body: &str) -> Result<Value, Error> {
        let Ok(note) = serde_json::from_str::<NewNote>(body) else {
            return Ok(response(400, &json!({"error": "a note has a title and a text"})));
        };
        if note.title.is_empty() || note.title.chars().count() > 100 || note.text.chars().count() > 2_000 {
            return Ok(response(
                400,
                &json!({"error": "a title has 1 to 100 characters, a text up to 2,000"}),
            ));
        }
        let id = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos().to_string();
        let text = |text: &str| AttributeValue::S(text.to_owned());
        self.notes
            .put_item()
            .table_name(&self.table)
            .item("user", text(user))
            .item("id", text(&id))
            .item("title", text(&note.title))
            .item("text", text(&note.text))
            .condition_expression("attribute_not_exists(id)")
            .send()
            .await?;
        Ok(response(201, &json!({"id": id, "receipt": self.receipt(user, &id)})))
    }

    async fn list(&self, user: &str) -> Result<Value, Error> {
        let query = self.notes.query().table_name(&self.table).limit(NOTES_MAX);
        let query = query
            .key_condition_expression("#user = :user")
            .expression_attribute_names("#user", "user");
        let found = query
            .expression_attribute_values(":user", AttributeValue::S(user.to_owned()))
            .send()
            .await?;
        let note = |item: &std::collections::HashMap<String, AttributeValue>| {
            let text = |name: &str| item.get(name).and_then(|value| value.as_s().ok()).cloned();
            json!({"id": text("id"), "title": text("title"), "text": text("text")})
        };
        Ok(response(
            200,
            &json!({"notes": found.items().iter().map(note).collect::<Vec<_>>()}),
        ))
    }

    fn receipt(&self, user: &str, id: &str) -> String {
        let signed = hmac::sign(&self.key, format!("{user}/{id}").as_bytes());
        signed.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn response(status: u16, body: &Value) -> Value {
    json!({
        "statusCode": status,
        "headers": {"content-type": "application/json", "cache-control": "no-store"},
        "body": body.to_string(),
    })
}
