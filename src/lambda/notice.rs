//! What people are told about a minute: a short text for an e-mail or a chat.
//!
//! It says whom we banned and why, whom the brake holds, and what only alerts. What a client sent is never in it, and
//! addresses only if the operator wants them there: a message is copied to more places than a log.

use analyzer::judge::Charge;
use analyzer::policy::Mode;
use analyzer::{Minute, Verdict};

/// Whoever has more than this many in a minute looks into the log anyway.
const LINES_MAX: usize = 20;

/// A message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Notice {
    /// Below 100 characters of ASCII, as SNS wants it (SNS API reference, Publish).
    pub(super) subject: String,
    /// One line an event.
    pub(super) text: String,
}

/// The message about these verdicts, if they hold anything to tell. `deployment` says which one is speaking.
pub(super) fn notice(
    verdicts: &[Verdict],
    mode: Mode,
    now: Minute,
    addresses: bool,
    deployment: &str,
) -> Option<Notice> {
    let told = |told: fn(&Verdict) -> bool| verdicts.iter().filter(|verdict| told(verdict)).count();
    let (bans, held) = (
        told(|verdict| matches!(verdict, Verdict::Ban(..))),
        told(|verdict| matches!(verdict, Verdict::Held(..))),
    );
    let alerts = told(|verdict| matches!(verdict, Verdict::Alert(..) | Verdict::Crowd(..)));
    if bans + held + alerts == 0 {
        return None;
    }
    let several = |count: usize, one: &str, many: &str| {
        (count > 0).then(|| format!("{count} {}", if count == 1 { one } else { many }))
    };
    let counts: Vec<String> = [
        several(bans, "new ban", "new bans"),
        several(held, "held by the brake", "held by the brake"),
        several(alerts, "alert", "alerts"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let subject = format!("Palisade: {}", counts.join(", "));

    let mut lines = vec![format!("{deployment}, {now}"), String::new()];
    let lines_of = verdicts.iter().filter_map(|verdict| line(verdict, now, addresses));
    lines.extend(lines_of.take(LINES_MAX));
    let more = (bans + held + alerts).saturating_sub(LINES_MAX);
    if more > 0 {
        lines.push(format!("and {more} more; the updater's log has all of them"));
    }
    if mode == Mode::Observe && bans > 0 {
        lines.push("\nThe policy observes, so nothing is blocked.".to_owned());
    }
    Some(Notice {
        subject,
        text: lines.join("\n"),
    })
}

fn line(verdict: &Verdict, now: Minute, addresses: bool) -> Option<String> {
    let client = |charge: &Charge| match addresses {
        true => charge.client.to_string(),
        false => "a client".to_owned(),
    };
    let offense = |charge: &Charge| {
        format!(
            "{}: {} hits (limit {} in {})",
            charge.rule, charge.offense.hits, charge.limit, charge.window
        )
    };
    Some(match verdict {
        Verdict::Ban(charge, sentence) => format!(
            "{} for {}, {}, strike {}, {}",
            if sentence.action == analyzer::Action::Challenge {
                "challenge"
            } else {
                "ban"
            },
            sentence.until.since(now),
            client(charge),
            sentence.strike,
            offense(charge)
        ),
        Verdict::Held(charge, because) => format!("held, {}, {}; {because}", client(charge), offense(charge)),
        Verdict::Alert(charge) => format!("alert, {}, {}", client(charge), offense(charge)),
        Verdict::Crowd(crowd) => format!(
            "alert, {} clients with few requests each within {}, usually {}; no ban stops a crowd{}",
            crowd.clients,
            crowd.window,
            crowd.usual,
            crowd.separator.as_ref().map_or(String::new(), |(which, ..)| format!(
                ", but its {which} tells it from others: the verdict in the state says which"
            ))
        ),
        Verdict::Spared(..) => return None,
    })
}

#[cfg(test)]
mod tests {
    use analyzer::judge::Sentence;
    use analyzer::{Action, Client, Crowd, Offense, Span, Trait};

    use super::*;

    const NOW: Minute = Minute(29_892_247);

    fn charge(client: &str) -> Charge {
        Charge {
            client: Client::of_net(client.parse().unwrap()),
            rule: "login-brute-force".into(),
            limit: 20,
            window: Span::parse("5m").unwrap(),
            offense: Offense {
                rule: 0,
                hits: 30,
                matched: 30,
                requests: 31,
                first_hit: Minute(NOW.0 - 1),
                last_hit: Minute(NOW.0 - 1),
            },
            also: Vec::new(),
        }
    }

    fn ban(client: &str) -> Verdict {
        let sentence = Sentence {
            strike: 1,
            until: NOW + Span::parse("15m").unwrap(),
            action: Action::Block,
        };
        Verdict::Ban(charge(client), sentence)
    }

    fn told(verdicts: &[Verdict], mode: Mode, addresses: bool) -> Notice {
        notice(verdicts, mode, NOW, addresses, "api-updater").unwrap()
    }

    #[test]
    fn people_hear_who_and_why() {
        let verdicts = [
            ban("192.0.2.44/32"),
            Verdict::Held(charge("192.0.2.45/32"), "brake: 12 clients".into()),
            Verdict::Alert(charge("192.0.2.46/32")),
        ];
        let notice = told(&verdicts, Mode::Enforce, true);
        assert_eq!(notice.subject, "Palisade: 1 new ban, 1 held by the brake, 1 alert");
        assert_eq!(
            notice.text,
            "api-updater, 2026-11-01T12:07:00Z\n\n\
             ban for 15m, 192.0.2.44/32, strike 1, login-brute-force: 30 hits (limit 20 in 5m)\n\
             held, 192.0.2.45/32, login-brute-force: 30 hits (limit 20 in 5m); brake: 12 clients\n\
             alert, 192.0.2.46/32, login-brute-force: 30 hits (limit 20 in 5m)"
        );
    }

    #[test]
    fn addresses_and_what_clients_sent_can_stay_at_home() {
        let crowd = Verdict::Crowd(Crowd {
            clients: 9_000,
            usual: 40,
            window: Span::parse("5m").unwrap(),
            separator: Some((Trait::UserAgent, "secret-agent".into(), 0.9, 0.0)),
        });
        let text = told(&[ban("192.0.2.44/32"), crowd], Mode::Observe, false).text;
        assert!(!text.contains("192.0.2") && !text.contains("secret-agent"), "{text}");
        assert!(
            text.contains("a client, strike 1") && text.contains("9000 clients"),
            "{text}"
        );
        assert!(text.ends_with("nothing is blocked."), "{text}");
    }

    #[test]
    fn nothing_new_is_no_message_and_an_attack_is_one() {
        let spared = Verdict::Spared(charge("192.0.2.44/32"), "allow: partner".into());
        assert_eq!(notice(&[spared], Mode::Enforce, NOW, true, "x"), None);
        let many: Vec<Verdict> = (1..=150).map(|n| ban(&format!("192.0.2.{n}/32"))).collect();
        let notice = told(&many, Mode::Enforce, true);
        assert!(notice.text.ends_with("and 130 more; the updater's log has all of them"));
        assert!(notice.subject.is_ascii() && notice.subject.len() < 100);
    }
}
