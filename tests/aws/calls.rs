//! How many calls a minute of the live loop makes, counted where they leave the process.

use std::sync::{Arc, Mutex};

use aws_sdk_s3::Client;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use palisade::enforce::{Enforcer, Wanted};
use palisade::engine::{Engine, Run};
use palisade::logs::LogBucket;
use palisade::place::{Aws, s3_client};
use palisade::store::Bucket;
use palisade::traffic;
use updater::Family;
use walkdir::WalkDir;

use super::{Console, StandIn, unique};

/// An HTTP client that notes what it is asked for: `GET /state/ledger.json`, or `UpdateIPSet`.
#[derive(Debug, Clone)]
struct Counted<T> {
    inner: T,
    calls: Arc<Mutex<Vec<String>>>,
}

impl HttpClient for Counted<SharedHttpClient> {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(Counted {
            inner: self.inner.http_connector(settings, components),
            calls: Arc::clone(&self.calls),
        })
    }
}

impl HttpConnector for Counted<SharedHttpConnector> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let url = request.uri().split_once("//").unwrap().1;
        let path = url.split_once('/').unwrap().1.split('?').next().unwrap();
        let call = match request.headers().get("x-amz-target") {
            Some(target) => target.rsplit('.').next().unwrap().to_owned(),
            None => format!("{} /{path}", request.method()),
        };
        self.calls.lock().unwrap().push(call);
        self.inner.call(request)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minute_in_which_nothing_changed_makes_a_handful_of_calls_and_no_update() {
    let Some(aws) = StandIn::shared() else { return };
    let region = "ap-south-1";
    let console = Console::new(aws, region, aws_sdk_wafv2::types::Scope::Regional);
    let calls = Arc::new(Mutex::new(Vec::new()));
    let config = aws.config(region);
    let counted = Counted {
        inner: config.http_client().unwrap(),
        calls: Arc::clone(&calls),
    };
    let config = config.to_builder().http_client(counted).build();

    // A deployment with two block sets, and the demo's hour of logs.
    let (state, logs) = (unique("calls-state"), unique("calls-logs"));
    let mut ids = Vec::new();
    for family in [Family::V4, Family::V6] {
        ids.push(console.create(&unique("calls"), family, &[], None).await);
    }
    let s3 = s3_client(&config);
    for bucket in [&state, &logs] {
        let place = aws_sdk_s3::types::CreateBucketConfiguration::builder()
            .location_constraint(aws_sdk_s3::types::BucketLocationConstraint::ApSouth1)
            .build();
        let create = s3.create_bucket().bucket(bucket).create_bucket_configuration(place);
        create.send().await.unwrap();
    }
    let policy = analyzer::DEFAULT_POLICY.replacen("mode = \"observe\"", "mode = \"enforce\"", 1);
    put(&s3, &state, "policy.toml", policy.into_bytes()).await;
    let set = |at: usize| format!("[{{\"name\":\"{}\",\"id\":\"{}\"}}]", ids[at].name, ids[at].id);
    let deployment = format!(
        "{{\"version\":1,\"targets\":[{{\"scope\":\"REGIONAL\",\"region\":\"{region}\",\"block\":{{\"v4\":{},\"v6\":{}}}}}]}}",
        set(0),
        set(1)
    );
    put(&s3, &state, "deployment.json", deployment.into_bytes()).await;
    let folder = tempfile::tempdir().unwrap();
    traffic::deliver(&traffic::hour(1).requests, folder.path(), 1).unwrap();
    for entry in WalkDir::new(folder.path()) {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            let key = entry
                .path()
                .strip_prefix(folder.path())
                .unwrap()
                .to_string_lossy()
                .into_owned();
            put(&s3, &logs, &key, std::fs::read(entry.path()).unwrap()).await;
        }
    }

    let mut engine = Engine::new(
        Bucket::new(s3.clone(), &state, ""),
        LogBucket::new(s3.clone(), &logs, ""),
    );
    let mut enforcer = Enforcer::new(Aws::from(config));
    let mut minute = async |time: &str| {
        calls.lock().unwrap().clear();
        let now = chrono::DateTime::parse_from_rfc3339(time).unwrap().timestamp_millis();
        let now = analyzer::Minute::of_ms(now);
        let ticked = engine.tick(now, false, || true).await.unwrap();
        let wanted = Wanted {
            mode: ticked.policy.mode,
            bans: &ticked.judgment.ledger.wanted(&ticked.policy, now),
            ours: &ticked.ours,
        };
        let outcomes = enforcer.enforce(&engine.store, &wanted).await.unwrap();
        assert_eq!(outcomes[0].failures, Vec::<String>::new());
        engine.left(&ticked.judgment.ledger.leaving).await.unwrap();
        let run = Run {
            summary: ticked.summary,
            outcomes,
            ..Run::default()
        };
        engine.note_run(run).await.unwrap();
        std::mem::take(&mut *calls.lock().unwrap())
    };

    let busy = minute("2026-11-01T12:42:00Z").await;
    assert!(busy.contains(&"UpdateIPSet".to_owned()), "{busy:?}");
    let quiet = minute("2026-11-01T12:42:00Z").await;
    println!("a quiet minute: {quiet:?}");
    let expected = [
        format!("GET /{state}/policy.toml"),
        format!("GET /{logs}/"),
        format!("GET /{state}/ledger.json"),
        format!("GET /{state}/deployment.json"),
        "GetIPSet".to_owned(),
        "GetIPSet".to_owned(),
        format!("PUT /{state}/runs.json"),
    ];
    assert_eq!(quiet, expected);
}

async fn put(s3: &Client, bucket: &str, key: &str, bytes: Vec<u8>) {
    let put = s3.put_object().bucket(bucket).key(key).body(bytes.into());
    put.send().await.unwrap();
}
