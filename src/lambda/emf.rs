//! CloudWatch's embedded metric format: a log line that says which of its numbers are metrics.
//!
//! CloudWatch Logs turns them into metrics by itself, so that no function calls another service to be observed
//! ([Specification: embedded metric format][emf]).
//!
//! [emf]: https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html

use serde_json::{Map, Value, json};

/// Where CloudWatch shows them.
const NAMESPACE: &str = "Palisade";

/// One number about an invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// The number.
    pub value: i64,
}

/// What a metric counts, in CloudWatch's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Unit {
    Count,
    Seconds,
    Milliseconds,
}

impl Metric {
    /// So many of something.
    pub fn count(name: &'static str, value: impl TryInto<i64>) -> Metric {
        Metric {
            name,
            unit: Unit::Count,
            value: value.try_into().unwrap_or(i64::MAX),
        }
    }
}

/// `line` with `metrics` among its members, announced as such. They are told apart by the function's name alone: each
/// further dimension would be a metric of its own to pay for.
pub fn embed(mut line: Map<String, Value>, metrics: &[Metric], function: &str, timestamp_ms: i64) -> Value {
    let announced: Vec<Value> = metrics
        .iter()
        .map(|metric| json!({"Name": metric.name, "Unit": format!("{:?}", metric.unit)}))
        .collect();
    for metric in metrics {
        line.insert(metric.name.to_owned(), metric.value.into());
    }
    line.insert("function".into(), function.into());
    let directive = json!({"Namespace": NAMESPACE, "Dimensions": [["function"]], "Metrics": announced});
    line.insert(
        "_aws".into(),
        json!({"Timestamp": timestamp_ms, "CloudWatchMetrics": [directive]}),
    );
    line.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_announces_its_metrics_and_holds_them() {
        let lag = Metric {
            name: "lag_seconds",
            unit: Unit::Seconds,
            value: -3,
        };
        let line = Map::from_iter([("type".to_owned(), json!("summary"))]);
        let line = embed(
            line,
            &[Metric::count("bans", 2_usize), lag],
            "updater",
            1_793_491_200_000,
        );
        assert_eq!(
            line,
            json!({
                "type": "summary", "bans": 2, "lag_seconds": -3, "function": "updater",
                "_aws": {"Timestamp": 1_793_491_200_000_i64, "CloudWatchMetrics": [{
                    "Namespace": "Palisade", "Dimensions": [["function"]],
                    "Metrics": [{"Name": "bans", "Unit": "Count"}, {"Name": "lag_seconds", "Unit": "Seconds"}],
                }]},
            })
        );
        assert!(!line.to_string().contains('\n'));
    }
}
