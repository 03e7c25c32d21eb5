//! What the stand-in of `tests/aws` cannot show: answers that only a WAF in trouble gives, and the pace.
//!
//! Where WAF behaves, `tests/aws/contract.rs` looks at [`Wafv2`] and [`Memory`](crate::Memory) side by side.

use std::sync::atomic::{AtomicUsize, Ordering};

use aws_sdk_wafv2::config::{BehaviorVersion, Credentials, HttpClient, RuntimeComponents, SharedCredentialsProvider};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_types::body::SdkBody;

use super::*;

const CONTENT: &str = r#"{"LockToken":"token-1","IPSet":{"Name":"bans","Id":"id-1","ARN":"arn","IPAddressVersion":"IPV4","Description":"","Addresses":["192.0.2.1/32"]}}"#;

fn bans() -> SetId {
    SetId::new("bans", "id-1")
}

/// A WAF that answers each action, as `GetIPSet`, as a function says, or never.
#[derive(Clone)]
struct Answers(Arc<dyn Fn(&str) -> Answer + Send + Sync>);

/// A status and a body.
type Answer = Option<(u16, &'static str)>;

fn wafv2(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Wafv2 {
    let credentials = Credentials::new("test", "test", None, None, "test");
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("eu-central-1"))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .http_client(Answers(Arc::new(answer)))
        .build();
    Wafv2::new(&config, Scope::Regional)
}

/// A WAF that gives reads this content, and updates this answer.
fn answering(content: &'static str, status: u16, answer: &'static str) -> Wafv2 {
    wafv2(move |action| match action {
        "UpdateIPSet" => Some((status, answer)),
        _ => Some((200, content)),
    })
}

impl HttpConnector for Answers {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let action = target.rsplit('.').next().unwrap_or_default();
        match (self.0)(action) {
            Some((status, body)) => {
                let answer = HttpResponse::new(status.try_into().unwrap(), SdkBody::from(body));
                HttpConnectorFuture::ready(Ok(answer))
            }
            None => HttpConnectorFuture::new(std::future::pending()),
        }
    }
}

impl HttpClient for Answers {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answers")
    }
}

async fn update(wafv2: &Wafv2) -> Result<(), IpSetError> {
    let lock = wafv2.get(&bans()).await.unwrap().lock_token;
    wafv2.update(&bans(), &["192.0.2.2/32".parse().unwrap()], &lock).await
}

#[tokio::test(start_paused = true)]
async fn every_refusal_is_said_in_our_words() {
    let check = async |status, answer, expected: &str, retryable| {
        let error = update(&answering(CONTENT, status, answer)).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.is_retryable(), retryable, "{expected}");
    };
    let answer = r#"{"__type":"WAFOptimisticLockException"}"#;
    check(400, answer, "somebody changed the IP set after we read it", true).await;

    let answer = r#"{"__type":"WAFNonexistentItemException"}"#;
    let expected = "there is no IP set of this name and id: it was deleted, renamed or created anew";
    check(400, answer, expected, false).await;

    let answer = r#"{"__type":"WAFInvalidParameterException","Field":"IP_ADDRESS","Parameter":"192.0.2.2/33",
        "Reason":"The parameter contains formatting that is not valid."}"#;
    let expected = "WAF refused IP_ADDRESS `192.0.2.2/33`: The parameter contains formatting that is not valid.";
    check(400, answer, expected, false).await;

    let answer = r#"{"__type":"WAFLimitsExceededException"}"#;
    check(
        400,
        answer,
        "the IP set would hold more addresses than WAF allows",
        false,
    )
    .await;

    let answer = r#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#;
    check(400, answer, "WAF asks us to slow down", true).await;

    let answer = r#"{"__type":"WAFInternalErrorException"}"#;
    check(500, answer, "WAF had an internal error", true).await;
    let answer = r#"{"__type":"ServiceUnavailable"}"#;
    check(503, answer, "WAF had an internal error", true).await;

    let answer = r#"{"__type":"AccessDeniedException","Message":"User is not authorized"}"#;
    check(400, answer, "not allowed to call `wafv2:UpdateIPSet`", false).await;

    let answer = r#"{"__type":"ExpiredTokenException","message":"The security token is expired"}"#;
    let expected = "WAF refused `wafv2:UpdateIPSet` with ExpiredTokenException: The security token is expired";
    check(400, answer, expected, false).await;
}

#[tokio::test(start_paused = true)]
async fn silence_can_be_retried() {
    let error = wafv2(|_| None).get(&bans()).await.unwrap_err();
    assert!(matches!(error, IpSetError::NoAnswer { .. }), "{error:?}");
    assert!(error.is_retryable());
    assert!(
        error
            .to_string()
            .starts_with("no answer to `wafv2:GetIPSet`: request has timed out"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_update_is_sent_once_and_a_read_again() {
    let calls = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let counted = Arc::clone(&calls);
    let wafv2 = wafv2(move |action| {
        let [reads, updates] = &*counted;
        let failed = (500, r#"{"__type":"WAFInternalErrorException"}"#);
        Some(match action {
            "UpdateIPSet" => {
                updates.fetch_add(1, Ordering::Relaxed);
                failed
            }
            _ if reads.fetch_add(1, Ordering::Relaxed) == 0 => failed,
            _ => (200, CONTENT),
        })
    });
    assert_eq!(update(&wafv2).await, Err(IpSetError::Internal));
    let [reads, updates] = &*calls;
    assert_eq!((reads.load(Ordering::Relaxed), updates.load(Ordering::Relaxed)), (2, 1));
}

#[tokio::test]
async fn an_address_that_cannot_be_read_is_an_error_and_not_left_out() {
    let content = r#"{"LockToken":"token-1","IPSet":{"Name":"bans","Id":"id-1","ARN":"arn","IPAddressVersion":"IPV4","Addresses":["192.0.2.1/32","192.0.2.2-192.0.2.9"]}}"#;
    let error = answering(content, 200, "{}").get(&bans()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the IP set holds `192.0.2.2-192.0.2.9`, which is no CIDR notation"
    );
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn a_lock_token_we_did_not_see_is_checked_before_the_description_is_used() {
    let wafv2 = answering(CONTENT, 200, r#"{"NextLockToken":"token-2"}"#);
    assert_eq!(
        wafv2.update(&bans(), &[], &LockToken("token-0".into())).await,
        Err(IpSetError::OptimisticLock)
    );
    assert_eq!(wafv2.update(&bans(), &[], &LockToken("token-1".into())).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn clones_share_a_pace_of_one_update_and_five_reads_a_second() {
    let wafv2 = answering(CONTENT, 200, r#"{"NextLockToken":"token-2"}"#);
    let clone = wafv2.clone();
    let start = Instant::now();

    for _ in 0..3 {
        wafv2.get(&bans()).await.unwrap();
    }
    for _ in 0..2 {
        clone.get(&bans()).await.unwrap();
    }
    assert!(start.elapsed() < Duration::from_millis(100), "five at once");
    clone.get(&bans()).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "the sixth waits");

    let start = Instant::now();
    let (set, lock) = (bans(), LockToken("token-1".into()));
    let answers = tokio::join!(
        wafv2.update(&set, &[], &lock),
        clone.update(&set, &[], &lock),
        wafv2.update(&set, &[], &lock)
    );
    assert_eq!(answers, (Ok(()), Ok(()), Ok(())));
    let elapsed = start.elapsed();
    assert!(
        (Duration::from_secs(2)..Duration::from_secs(3)).contains(&elapsed),
        "{elapsed:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn who_stops_waiting_lets_nobody_leave_early() {
    let pace = Pace::new(1);
    let start = Instant::now();
    pace.turn().await;
    assert!(
        tokio::time::timeout(Duration::from_millis(10), pace.turn())
            .await
            .is_err()
    );
    pace.turn().await;
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[test]
fn cloudfront_lives_in_one_region() {
    let frankfurt = Some(Region::from_static("eu-central-1"));
    assert_eq!(region_of(Scope::Regional, frankfurt.clone()), frankfurt);
    assert_eq!(region_of(Scope::Regional, None), None);
    assert_eq!(
        region_of(Scope::Cloudfront, frankfurt),
        Some(Region::from_static("us-east-1"))
    );
    assert_eq!(
        region_of(Scope::Cloudfront, None),
        Some(Region::from_static("us-east-1"))
    );
}
