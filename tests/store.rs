//! What [`palisade::store::Store`] promises, looked at in a folder and in a bucket of the stand-in alike.

use palisade::place::s3_client;
use palisade::store::{Bucket, Condition, Directory, Store, StoreErrorKind};

use crate::aws::StandIn;

/// Every promise, in a store that is empty.
async fn check(store: impl Store + Clone) {
    // What is not there is not there, and no error.
    assert_eq!(store.get("ledger.json").await, Ok(None));
    assert_eq!(store.list("").await, Ok(Vec::new()));
    assert_eq!(store.list("tallies/none/").await, Ok(Vec::new()));
    store.delete("ledger.json").await.unwrap();

    // What is written is read, with the version that the write gave.
    let first = store
        .put("ledger.json", b"one".to_vec(), Condition::IfAbsent)
        .await
        .unwrap();
    assert_eq!(
        store.get("ledger.json").await,
        Ok(Some((b"one".to_vec(), first.clone())))
    );

    // Only one of two who found nothing may write.
    let late = store
        .put("ledger.json", b"two".to_vec(), Condition::IfAbsent)
        .await
        .unwrap_err();
    assert!(late.is_conflict(), "{late}");
    assert!(late.to_string().contains("ledger.json"), "{late}");

    // Only one of two who read the same may write.
    let second = store
        .put("ledger.json", b"two".to_vec(), Condition::IfUnchanged(first.clone()))
        .await
        .unwrap();
    assert_ne!(first, second);
    let late = store
        .put("ledger.json", b"three".to_vec(), Condition::IfUnchanged(first))
        .await
        .unwrap_err();
    assert_eq!(late.kind, StoreErrorKind::Conflict);
    assert_eq!(store.get("ledger.json").await.unwrap().unwrap().0, b"two");

    // Whoever insists on what has been removed finds a conflict, too.
    store.delete("ledger.json").await.unwrap();
    let late = store
        .put("ledger.json", b"three".to_vec(), Condition::IfUnchanged(second))
        .await
        .unwrap_err();
    assert!(
        late.is_conflict() || matches!(late.kind, StoreErrorKind::Failed(_)),
        "{late}"
    );
    assert_eq!(store.get("ledger.json").await, Ok(None));

    // Listing shows whole keys below a prefix, in order, however many they are.
    for number in 0..25 {
        let key = format!("tallies/f/2026-11-01T{:02}/{number:02}", number % 2);
        store.put(&key, vec![0; number], Condition::Always).await.unwrap();
    }
    store
        .put("verdicts/2026-11-01/12-00.jsonl", b"{}".to_vec(), Condition::Always)
        .await
        .unwrap();
    let listed = store.list("tallies/f/2026-11-01T01/").await.unwrap();
    let keys: Vec<&str> = listed.iter().map(|listed| listed.key.as_str()).collect();
    assert_eq!(keys.len(), 12);
    assert_eq!((keys[0], listed[0].size), ("tallies/f/2026-11-01T01/01", 1));
    assert!(keys.is_sorted());
    assert_eq!(store.list("").await.unwrap().len(), 26);

    // Of ten who write at once over the same version, one wins.
    let start = store.put("race", b"0".to_vec(), Condition::Always).await.unwrap();
    let mut racers = Vec::new();
    for number in 0..10u8 {
        racers.push(store.put("race", vec![number], Condition::IfUnchanged(start.clone())));
    }
    let mut won = 0;
    for racer in racers {
        won += usize::from(racer.await.is_ok());
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn a_folder_keeps_the_promises_of_a_store() {
    let folder = tempfile::tempdir().unwrap();
    check(Directory::new(folder.path().join("state"))).await;
}

#[tokio::test]
async fn a_bucket_keeps_the_promises_of_a_store() {
    let Some(aws) = StandIn::shared() else { return };
    let client = s3_client(&aws.config("us-east-1"));
    client.create_bucket().bucket("palisade-store").send().await.unwrap();
    check(Bucket::new(client.clone(), "palisade-store", "")).await;
    // A part of a bucket knows nothing of the rest.
    check(Bucket::new(client, "palisade-store", "other/part")).await;
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_no_empty_state() {
    let Some(aws) = StandIn::shared() else { return };
    let store = Bucket::new(s3_client(&aws.config("us-east-1")), "palisade-nowhere", "");
    let error = store.get("ledger.json").await.unwrap_err();
    assert!(error.to_string().contains("no such bucket"), "{error}");
    assert!(store.list("").await.is_err());
}

#[tokio::test]
async fn two_processes_on_one_folder_exclude_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let store = Directory::new(folder.path());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(async {
                    let mut added = 0;
                    while added < 25 {
                        let (value, condition) = match store.get("counter").await.unwrap() {
                            None => (1u32, Condition::IfAbsent),
                            Some((value, version)) => (
                                String::from_utf8(value).unwrap().parse::<u32>().unwrap() + 1,
                                Condition::IfUnchanged(version),
                            ),
                        };
                        match store.put("counter", value.to_string().into_bytes(), condition).await {
                            Ok(_) => added += 1,
                            Err(error) => assert!(error.is_conflict(), "{error}"),
                        }
                    }
                });
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let (value, _) = Directory::new(folder.path()).get("counter").await.unwrap().unwrap();
    assert_eq!(value, b"100");
}
