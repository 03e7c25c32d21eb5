//! Asks Athena: starts a query, waits, and takes the answer's rows page by page.
//!
//! A query that nobody waits for any more is cancelled, for Athena goes on and its price with it. Whatever goes wrong becomes
//! a sentence that says what to do; [`analyzer::athena`] knows what is asked.

use std::future::Future;
use std::time::Duration;

use analyzer::athena::{Counts, Period, Row, Rules, Table, sql};
use analyzer::stored::ObjectTally;
use analyzer::{Minute, Policy};
use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_sdk_athena::Client;
use aws_sdk_athena::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_athena::types::{QueryExecution, QueryExecutionContext, QueryExecutionState, ResultConfiguration};

use crate::engine::{chain, long_tally_key};
use crate::store::{Condition, Store, StoreError};

/// A query is looked at again after this long at first, and after half as long again each further time.
const POLL_FIRST: Duration = Duration::from_millis(250);
/// Longer pauses would only make people wait.
const POLL_LONGEST: Duration = Duration::from_secs(5);
/// How often a call is tried that AWS throttles, with the SDK's growing pauses.
const ATTEMPTS_MAX: u32 = 6;
const RETRY_FIRST: Duration = Duration::from_millis(250);

/// Athena's list price in most Regions, in dollars for 10^12 bytes scanned
/// ([Athena pricing](https://aws.amazon.com/athena/pricing/)).
const DOLLARS_PER_TERABYTE: f64 = 5.0;
/// A query that scans less costs as much; stated on the same page.
const BILLED_BYTES_MIN: u64 = 10_000_000;

/// About what scanning so many bytes costs, in dollars.
pub fn dollars(scanned_bytes: u64) -> f64 {
    scanned_bytes.max(BILLED_BYTES_MIN) as f64 / 1e12 * DOLLARS_PER_TERABYTE
}

/// Whom to ask, and under which limits.
#[derive(Debug, Clone)]
pub struct Athena {
    client: Client,
    /// Its limits and its place for results apply.
    pub workgroup: String,
    /// Where results go, `s3://bucket/prefix/`, if the workgroup does not say.
    pub results: Option<String>,
}

/// What a query gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// Its rows, without the names of the columns.
    pub rows: Vec<Vec<Option<String>>>,
    /// The bytes that were read, which is what is paid for.
    pub scanned_bytes: u64,
    /// By which AWS knows the query.
    pub id: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AthenaError {
    /// The table or its database is missing.
    #[error("there is no table `{0}`")]
    NoTable(String),
    /// The table is about other logs than were asked for.
    #[error("table `{table}` describes the logs in `{found}`, not those in `{wanted}`")]
    OtherLogs {
        /// Which table.
        table: String,
        /// What its definition says.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// The workgroup does not allow to scan so much.
    #[error(
        "query `{id}` was cancelled because it would scan more than workgroup `{workgroup}` allows, after {scanned_bytes} bytes"
    )]
    TooMuch {
        /// Which query.
        id: String,
        /// Whose limit.
        workgroup: String,
        /// What had been read.
        scanned_bytes: u64,
    },
    /// Somebody else cancelled it.
    #[error("query `{id}` was cancelled after {scanned_bytes} bytes: {reason}")]
    Cancelled {
        /// Which query.
        id: String,
        /// Why, as AWS says.
        reason: String,
        /// What had been read.
        scanned_bytes: u64,
    },
    /// We cancelled it, because time ran out or somebody asked us to end.
    #[error("query `{id}` was cancelled by us after {scanned_bytes} bytes: {reason}")]
    GivenUp {
        /// Which query.
        id: String,
        /// Why.
        reason: &'static str,
        /// What had been read.
        scanned_bytes: u64,
    },
    /// Athena could not answer.
    #[error("query `{id}` failed: {reason}")]
    Failed {
        /// Which query.
        id: String,
        /// Why, as AWS says.
        reason: String,
    },
    /// AWS refused call after call because there were too many.
    #[error("Athena was asked too often, also by others of this account, and refused {ATTEMPTS_MAX} times")]
    Throttled,
    /// A call failed.
    #[error("failed to {doing}: {why}")]
    Call {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        why: String,
    },
    /// The rows are not an answer to our question.
    #[error(transparent)]
    Strange(#[from] analyzer::athena::StrangeRow),
    /// There is no such question.
    #[error(transparent)]
    Unsayable(#[from] analyzer::athena::Unsayable),
    /// The counts could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AthenaError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            AthenaError::NoTable(_) => {
                "`palisade athena ddl --run` makes it, from the place of the logs; `--table database.table` names another"
                    .to_owned()
            }
            AthenaError::OtherLogs { .. } => "`--table` names another table, `palisade athena ddl` makes one".to_owned(),
            AthenaError::TooMuch { .. } => {
                "ask about less time with `--from` and `--to`, or raise the workgroup's limit of bytes for each query"
                    .to_owned()
            }
            AthenaError::Throttled => "try again in a minute".to_owned(),
            AthenaError::Call { why, .. } if why.contains("output location") => {
                "`--results s3://bucket/prefix/` says where Athena may put its results, `--workgroup` names one that knows"
                    .to_owned()
            }
            _ => return None,
        })
    }
}

fn refused<E>(doing: &'static str, error: &SdkError<E>) -> AthenaError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    match error.code() {
        Some("TooManyRequestsException" | "ThrottlingException") => AthenaError::Throttled,
        Some(code) => {
            let why = error.message().unwrap_or("no reason was given").to_owned();
            let why = match code {
                "AccessDeniedException" => format!("it is not allowed: {why}"),
                _ => why,
            };
            AthenaError::Call { doing, why }
        }
        None => AthenaError::Call {
            doing,
            why: chain(error),
        },
    }
}

impl Athena {
    /// Asks in the Region and with the credentials of `config`.
    pub fn new(config: &SdkConfig, workgroup: impl Into<String>, results: Option<String>) -> Athena {
        let retries = RetryConfig::standard()
            .with_max_attempts(ATTEMPTS_MAX)
            .with_initial_backoff(RETRY_FIRST);
        let config = aws_sdk_athena::config::Builder::from(config)
            .retry_config(retries)
            .build();
        Athena {
            client: Client::from_conf(config),
            workgroup: workgroup.into(),
            results,
        }
    }

    /// Looks whether the table of `wanted` is there, and about those logs.
    ///
    /// # Errors
    /// When it is not, or can't be looked at.
    pub async fn check(&self, wanted: &Table) -> Result<(), AthenaError> {
        let name = || format!("{}.{}", wanted.database, wanted.name);
        let get = self
            .client
            .get_table_metadata()
            .catalog_name("AwsDataCatalog")
            .work_group(&self.workgroup);
        let got = get
            .database_name(&wanted.database)
            .table_name(&wanted.name)
            .send()
            .await;
        let table = match got {
            Ok(got) => got.table_metadata,
            Err(error) if error.code() == Some("MetadataException") => return Err(AthenaError::NoTable(name())),
            Err(error) => return Err(refused("look at the table", &error)),
        };
        let parameters = table.and_then(|table| table.parameters).unwrap_or_default();
        let template = parameters.get("storage.location.template");
        match template.and_then(|template| template.split("${").next()) {
            Some(found) if found != wanted.location => Err(AthenaError::OtherLogs {
                table: name(),
                found: found.to_owned(),
                wanted: wanted.location.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Runs a statement to its end. `stop` says when, and why, nobody wants to wait any more.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn run(
        &self,
        database: &str,
        statement: &str,
        stop: impl Future<Output = &'static str>,
    ) -> Result<Answer, AthenaError> {
        let mut stop = std::pin::pin!(stop);
        let context = QueryExecutionContext::builder()
            .catalog("AwsDataCatalog")
            .database(database)
            .build();
        let results = self
            .results
            .as_ref()
            .map(|at| ResultConfiguration::builder().output_location(at).build());
        let start = self
            .client
            .start_query_execution()
            .query_string(statement)
            .work_group(&self.workgroup);
        let started = start
            .query_execution_context(context)
            .set_result_configuration(results)
            .send()
            .await;
        let started = started.map_err(|error| refused("start the query", &error))?;
        let id = started.query_execution_id.unwrap_or_default();

        let mut pause = POLL_FIRST;
        let execution = loop {
            let execution = self.execution(&id).await?;
            let state = execution.status().and_then(|status| status.state()).cloned();
            match state {
                Some(QueryExecutionState::Queued | QueryExecutionState::Running) | None => {}
                Some(_) => break execution,
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                reason = &mut stop => return Err(self.give_up(&id, reason).await),
            }
            pause = (pause * 3 / 2).min(POLL_LONGEST);
        };
        self.succeeded(&id, &execution)?;
        let rows = self.rows(&id, stop).await?;
        Ok(Answer {
            rows,
            scanned_bytes: scanned_bytes(&execution),
            id,
        })
    }

    async fn execution(&self, id: &str) -> Result<QueryExecution, AthenaError> {
        let got = self.client.get_query_execution().query_execution_id(id).send().await;
        let got = got.map_err(|error| refused("ask how the query is", &error))?;
        got.query_execution.ok_or(AthenaError::Call {
            doing: "ask how the query is",
            why: "Athena does not know it any more".to_owned(),
        })
    }

    /// Cancels a query: what it has scanned so far is paid for, and no more.
    async fn give_up(&self, id: &str, reason: &'static str) -> AthenaError {
        if let Err(error) = self.client.stop_query_execution().query_execution_id(id).send().await {
            return refused("cancel the query, which goes on", &error);
        }
        let scanned_bytes = self
            .execution(id)
            .await
            .map_or(0, |execution| scanned_bytes(&execution));
        AthenaError::GivenUp {
            id: id.to_owned(),
            reason,
            scanned_bytes,
        }
    }

    fn succeeded(&self, id: &str, execution: &QueryExecution) -> Result<(), AthenaError> {
        let status = execution.status();
        let reason = status
            .and_then(|status| status.state_change_reason())
            .unwrap_or("no reason was given");
        let (id, scanned_bytes) = (id.to_owned(), scanned_bytes(execution));
        match status.and_then(|status| status.state()) {
            Some(QueryExecutionState::Succeeded) => Ok(()),
            Some(QueryExecutionState::Cancelled) if reason.contains("Bytes scanned limit") => {
                Err(AthenaError::TooMuch {
                    id,
                    workgroup: self.workgroup.clone(),
                    scanned_bytes,
                })
            }
            Some(QueryExecutionState::Cancelled) => Err(AthenaError::Cancelled {
                id,
                reason: reason.to_owned(),
                scanned_bytes,
            }),
            // Athena says `TABLE_NOT_FOUND: line 1:15: Table 'awsdatacatalog.x.y' does not exist`.
            _ if reason.contains("TABLE_NOT_FOUND") || reason.contains("SCHEMA_NOT_FOUND") => Err(
                AthenaError::NoTable(reason.split('\'').nth(1).unwrap_or(reason).to_owned()),
            ),
            _ => Err(AthenaError::Failed {
                id,
                reason: reason.to_owned(),
            }),
        }
    }

    /// All rows of an answer: Athena gives at most a thousand at a time.
    async fn rows(
        &self,
        id: &str,
        mut stop: std::pin::Pin<&mut impl Future<Output = &'static str>>,
    ) -> Result<Vec<Vec<Option<String>>>, AthenaError> {
        let mut pages = self
            .client
            .get_query_results()
            .query_execution_id(id)
            .into_paginator()
            .send();
        let mut rows = Vec::new();
        let mut first = true;
        loop {
            let page = tokio::select! {
                page = pages.next() => page,
                reason = &mut stop => {
                    return Err(AthenaError::GivenUp { id: id.to_owned(), reason, scanned_bytes: 0 });
                }
            };
            let Some(page) = page else { return Ok(rows) };
            let page = page.map_err(|error| refused("read the results", &error))?;
            let Some(set) = page.result_set else { continue };
            let columns = set
                .result_set_metadata
                .map_or(0, |metadata| metadata.column_info().len());
            // The answer to a SELECT begins with the names of its columns; that to a definition is empty or says OK.
            let names = usize::from(std::mem::take(&mut first) && columns > 0);
            rows.extend(set.rows.unwrap_or_default().into_iter().skip(names).map(|row| {
                let cells = row.data.unwrap_or_default().into_iter();
                cells.map(|cell| cell.var_char_value).collect()
            }));
        }
    }

    /// Has the rules of a policy counted.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn count(
        &self,
        policy: &Policy,
        rules: Rules,
        table: &Table,
        period: Period,
        stop: impl Future<Output = &'static str>,
    ) -> Result<Counted, AthenaError> {
        let question = sql(policy, rules, table, period)?;
        let answer = self.run(&table.database, &question, stop).await?;
        let rows: Result<Vec<Row>, _> = answer.rows.into_iter().map(row_of).collect();
        let counts = Counts::of(policy, rules, rows?)?;
        Ok(Counted {
            counts,
            scanned_bytes: answer.scanned_bytes,
            id: answer.id,
        })
    }
}

/// What was counted, and what it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted {
    /// The counts.
    pub counts: Counts,
    /// The bytes that were read, which is what is paid for.
    pub scanned_bytes: u64,
    /// By which AWS knows the query.
    pub id: String,
}

fn scanned_bytes(execution: &QueryExecution) -> u64 {
    let statistics = execution.statistics();
    statistics
        .and_then(|statistics| statistics.data_scanned_in_bytes())
        .and_then(|bytes| u64::try_from(bytes).ok())
        .unwrap_or(0)
}

fn row_of(cells: Vec<Option<String>>) -> Result<Row, analyzer::athena::StrangeRow> {
    let strange = || analyzer::athena::StrangeRow(format!("{cells:?}"));
    let [client, Some(rule), minute, Some(hits), detail] = cells.as_slice() else {
        return Err(strange());
    };
    Ok(Row {
        client: client.clone(),
        rule: rule.clone(),
        minute: minute
            .as_ref()
            .map(|minute| minute.parse())
            .transpose()
            .map_err(|_| strange())?,
        hits: hits.parse().map_err(|_| strange())?,
        detail: detail.clone(),
    })
}

/// What counting for the rules with long windows took and gave.
#[derive(Debug, Clone, PartialEq)]
pub struct LongCount {
    /// Requests in the period.
    pub requests: u64,
    /// Clients that can still matter.
    pub suspects: u64,
    /// The bytes that were read, which is what is paid for.
    pub scanned_bytes: u64,
    /// By which AWS knows the query.
    pub id: String,
}

impl Athena {
    /// Has the rules counted that name Athena, as of the minute `now`, and keeps the tally where the next tick finds it.
    /// Nothing when no rule names it.
    ///
    /// # Errors
    /// When there is no answer, or it can't be kept; the tally before stays.
    pub async fn count_long(
        &self,
        store: &impl Store,
        policy: &Policy,
        table: &Table,
        now: Minute,
        stop: impl Future<Output = &'static str>,
    ) -> Result<Option<LongCount>, AthenaError> {
        let (Some(key), Some(horizon)) = (long_tally_key(policy), policy.long_horizon()) else {
            return Ok(None);
        };
        let ms = |minute: Minute| minute.epoch_seconds() * 1000;
        let period = Period {
            from_ms: ms(now - horizon),
            to_ms: ms(now),
        };
        self.check(table).await?;
        let Counted {
            counts,
            scanned_bytes,
            id,
        } = self.count(policy, Rules::Athena, table, period, stop).await?;
        let (requests, suspects) = (counts.requests, counts.tally.clients() as u64);
        let kept = ObjectTally {
            object: format!("athena query {id}"),
            requests,
            newest_ms: Some(ms(now)),
            tally: counts.tally,
            ..ObjectTally::default()
        };
        store.put(&key, kept.to_bytes(), Condition::Always).await?;
        Ok(Some(LongCount {
            requests,
            suspects,
            scanned_bytes,
            id,
        }))
    }
}
