//! The reference API behind Palisade: `infra/example-api/template.yaml` is deployed with Palisade's outputs, called, and removed.
//!
//! The stand-in signs users in, checks tokens and schemas, runs the function under its role, and keeps the notes. It evaluates
//! no web ACL, throttles nothing and writes no access log, so that what stands before the authorizer is only looked at here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{Named, REGION, Stack, delete, described, function_of, invocations, send_template, without_each_grant};
use crate::aws::{Api, StandIn};
use crate::e2e::{pack, replaced};

#[test]
fn the_example_api_keeps_what_is_valid_and_refuses_the_rest() {
    let Some(aws) = StandIn::with_permissions() else { return };
    let palisade = Stack::create(aws, REGION, "before-example", &[("ReserveConcurrency", "no")]).unwrap();
    palisade.deployed.set_schedule("DISABLED");
    let acl = &palisade.outputs["WebAclArn"];
    let example = Example::create(aws, acl);

    // Palisade's web ACL stands before the stage.
    let protected = json!({"ResourceArn": example.stage()});
    let found = example.api.ok("wafv2", "get_web_acl_for_resource", &protected);
    assert_eq!(found["WebACL"]["ARN"], json!(acl));

    // Nobody comes in unless they sign in, and what does not fit never reaches the function.
    let note = json!({"title": "a", "text": "b"});
    assert_eq!(example.call("POST", None, Some(&note)).0, 401);
    assert_eq!(example.call("GET", Some("forged.token.here"), None).0, 401);
    let somebody = example.signed_in("somebody@example.com");
    let somebody = Some(somebody.as_str());
    for unfit in [
        json!({"title": "a"}),
        json!({"title": "", "text": "b"}),
        json!({"title": "a", "text": "b", "admin": true}),
        json!({"title": "a", "text": "b".repeat(2_001)}),
    ] {
        assert_eq!(example.call("POST", somebody, Some(&unfit)).0, 400, "{unfit}");
    }
    assert_eq!((example.ran().0, example.notes()), (0, 0));

    // What fits is kept, with a receipt, and only its owner sees it.
    let (status, kept) = example.call("POST", somebody, Some(&note));
    assert_eq!(status, 201, "{kept}");
    assert_eq!(kept["receipt"].as_str().unwrap().len(), 64, "{kept}");
    assert_eq!((example.ran().0, example.notes()), (1, 1));
    let (status, listed) = example.call("GET", somebody, None);
    assert_eq!(status, 200, "{listed}");
    assert_eq!(listed["notes"], json!([{"id": kept["id"], "title": "a", "text": "b"}]));
    let other = example.signed_in("other@example.com");
    assert_eq!(example.call("GET", Some(&other), None).1["notes"], json!([]));

    // Each grant of the function's role is needed: without it, it answers with an error, or is silent or not traced.
    example.works(somebody).unwrap();
    let tried = without_each_grant(&example.api, &example.resources, "", "FunctionRole", |_, _| {
        Some(Box::new(|| example.works(somebody)))
    });
    assert_eq!(tried, 7);

    delete(&example.api, NAME).unwrap();
    palisade.delete().unwrap();
}

/// The example API as it is deployed.
struct Example<'a> {
    aws: &'a StandIn,
    api: Api,
    resources: Named,
    outputs: Named,
    agent: ureq::Agent,
}

/// As the stack is called.
const NAME: &str = "example-api";

impl<'a> Example<'a> {
    fn create(aws: &'a StandIn, acl: &str) -> Example<'a> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("infra/example-api");
        let template = fs::read_to_string(folder.join("template.yaml")).unwrap();
        let (before, _) = template.split_once("      CodeUri: .\n").unwrap();
        let before = before.rsplit_once("    Metadata:\n").unwrap().1.to_owned();
        let template = replaced(&template, "      CodeUri: .\n", "");
        let functions = [(pack(aws, &built(&folder)), before)];
        let api = Api::new(aws, REGION);
        send_template(
            aws,
            &api,
            REGION,
            NAME,
            &template,
            &functions,
            &[("WebAclArn", acl)],
            "first",
        )
        .unwrap();
        let (outputs, resources) = described(&api, NAME).unwrap();
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .new_agent();
        Example {
            aws,
            api,
            resources,
            outputs,
            agent,
        }
    }

    /// What the web ACL is associated with.
    fn stage(&self) -> String {
        format!(
            "arn:aws:apigateway:{REGION}::/restapis/{}/stages/v1",
            self.resources["Api"]
        )
    }

    /// Creates a user as the README says, who chooses a password: the ID token.
    fn signed_in(&self, name: &str) -> String {
        let (pool, client) = (&self.outputs["UserPool"], &self.outputs["UserPoolClient"]);
        let (first, own) = ("chosen by somebody else 1", "chosen by the user alone 2");
        let create =
            json!({"UserPoolId": pool, "Username": name, "TemporaryPassword": first, "MessageAction": "SUPPRESS"});
        self.api.ok("cognito-idp", "admin_create_user", &create);
        let sign_in = |password: &str| {
            let with = json!({"USERNAME": name, "PASSWORD": password});
            let sign_in = json!({"ClientId": client, "AuthFlow": "USER_PASSWORD_AUTH", "AuthParameters": with});
            self.api.ok("cognito-idp", "initiate_auth", &sign_in)
        };
        let asked = sign_in(first);
        assert_eq!(asked["ChallengeName"], "NEW_PASSWORD_REQUIRED", "{asked}");
        let with = json!({"USERNAME": name, "NEW_PASSWORD": own});
        let choose = json!({"ClientId": client, "ChallengeName": asked["ChallengeName"], "Session": asked["Session"],
                            "ChallengeResponses": with});
        self.api.ok("cognito-idp", "respond_to_auth_challenge", &choose);
        sign_in(own)["AuthenticationResult"]["IdToken"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// One request to `/notes`: the status, and the body if it is JSON.
    fn call(&self, method: &str, token: Option<&str>, body: Option<&Value>) -> (u16, Value) {
        let (id, host) = (&self.resources["Api"], self.aws.endpoint());
        // The output's host name leads to AWS, and the stand-in has a path for it.
        let url = format!("https://{id}.execute-api.{REGION}.amazonaws.com/v1");
        assert_eq!(self.outputs["Url"], url);
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{host}/_aws/execute-api/{id}/v1/notes"))
            .header("content-type", "application/json");
        let request = match token {
            Some(token) => request.header("authorization", token),
            None => request,
        };
        let request = request.body(body.map(Value::to_string).unwrap_or_default()).unwrap();
        let mut answer = self.agent.run(request).unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        (
            answer.status().as_u16(),
            serde_json::from_str(&text).unwrap_or_default(),
        )
    }

    /// How often the function ran, and how often it was traced.
    fn ran(&self) -> (usize, usize) {
        invocations(&self.api, &function_of(&self.resources, "Function"))
    }

    fn notes(&self) -> u64 {
        let scan = json!({"TableName": self.resources["Notes"], "Select": "COUNT"});
        self.api.ok("dynamodb", "scan", &scan)["Count"].as_u64().unwrap()
    }

    /// A new process keeps a note and lists it, and says so.
    fn works(&self, token: Option<&str>) -> Result<(), String> {
        let before = self.ran();
        let function = json!({"FunctionName": self.resources["Function"]});
        let mut environment = self.api.ok("lambda", "get_function_configuration", &function)["Environment"].clone();
        environment["Variables"]["PROBE"] = format!("{before:?}{:?}", std::time::Instant::now()).into();
        let update = json!({"FunctionName": self.resources["Function"], "Environment": environment});
        self.api.ok("lambda", "update_function_configuration", &update);
        let note = json!({"title": "a", "text": "b"});
        for (method, body, expected) in [("POST", Some(&note), 201), ("GET", None, 200)] {
            let (status, said) = self.call(method, token, body);
            if status != expected {
                return Err(format!("{method}: {status} {said}"));
            }
        }
        if self.ran() < (before.0 + 2, before.1 + 2) {
            return Err("it is silent or not traced".into());
        }
        Ok(())
    }
}

/// The function's program, which is a package of its own. It shares our target folder, and so most of its dependencies.
fn built(folder: &Path) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let built = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["build", "--quiet", "--locked", "--manifest-path"])
        .arg(folder.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .status();
    assert!(built.unwrap().success());
    target.join("debug/example-api")
}
