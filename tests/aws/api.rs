//! Any call to AWS by its name, for what tests set up and look at. Palisade's own calls go through the SDK.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use serde_json::{Value, json};

use super::StandIn;

/// AWS's APIs in one Region, as whoever holds a key.
pub(crate) struct Api {
    pipe: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    /// Ends when its standard input does.
    _process: Child,
}

impl Api {
    /// As somebody who may do everything.
    pub(crate) fn new(aws: &StandIn, region: &str) -> Api {
        Api::with_key(aws, region, &["test", "test"])
    }

    /// As a role.
    pub(crate) fn assuming(&self, aws: &StandIn, region: &str, role_arn: &str) -> Api {
        let assume = json!({"RoleArn": role_arn, "RoleSessionName": "somebody"});
        let credentials = &self.ok("sts", "assume_role", &assume)["Credentials"];
        let key = ["AccessKeyId", "SecretAccessKey", "SessionToken"].map(|part| credentials[part].as_str().unwrap());
        Api::with_key(aws, region, &key)
    }

    fn with_key(aws: &StandIn, region: &str, key: &[&str]) -> Api {
        let mut process = Command::new(aws.python())
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/aws/api.py"))
            .args([&aws.endpoint(), region])
            .args(key)
            .env_clear()
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pipe = (
            process.stdin.take().unwrap(),
            BufReader::new(process.stdout.take().unwrap()),
        );
        Api {
            pipe: Mutex::new(pipe),
            _process: process,
        }
    }

    /// What a call answers, or the error's code and message. In `parameters` `{"file": path}` stands for what a file holds.
    pub(crate) fn call(&self, service: &str, operation: &str, parameters: &Value) -> Result<Value, (String, String)> {
        let mut answer = String::new();
        {
            let (to, from) = &mut *self.pipe.lock().unwrap();
            writeln!(to, "{}", json!([service, operation, parameters])).unwrap();
            from.read_line(&mut answer).unwrap();
        }
        let answer: Value =
            serde_json::from_str(&answer).unwrap_or_else(|_| panic!("no answer to {service} {operation} {parameters}"));
        match answer.get("ok") {
            Some(answer) => Ok(answer.clone()),
            None => Err(["code", "message"]
                .map(|member| answer[member].as_str().unwrap().to_owned())
                .into()),
        }
    }

    /// What a call answers that has to succeed.
    pub(crate) fn ok(&self, service: &str, operation: &str, parameters: &Value) -> Value {
        self.call(service, operation, parameters)
            .unwrap_or_else(|error| panic!("{service} {operation} {parameters}: {error:?}"))
    }

    /// Whether a role's policies allow something.
    pub(crate) fn may(&self, role_arn: &str, action: &str, resource: &str) -> bool {
        let simulate = json!({"PolicySourceArn": role_arn, "ActionNames": [action], "ResourceArns": [resource]});
        let simulated = self.ok("iam", "simulate_principal_policy", &simulate);
        simulated["EvaluationResults"][0]["EvalDecision"] == "allowed"
    }
}
