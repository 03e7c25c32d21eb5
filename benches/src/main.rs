mod compare;
mod count;
#[allow(dead_code)]
mod records;
use std::io::Write;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args[1] == "compare" {
        let (read, found) = compare::run(
            args[2].parse().unwrap(),
            args[3].parse().unwrap(),
            std::time::Duration::from_secs(args[4].parse().unwrap()),
            |read, written| {
                writeln!(
                    std::io::stdout(),
                    "{read} records, about {written} of them as written, no disagreement"
                )
                .unwrap()
            },
        );
        writeln!(
            std::io::stdout(),
            "{read} records: {}",
            found.unwrap_or("no disagreement".into())
        )
        .unwrap();
        return;
    }
    let paths: Vec<std::path::PathBuf> = args[3..].iter().map(Into::into).collect();
    let threads: usize = args[2].parse().unwrap();
    let t = std::time::Instant::now();
    let answer = match args[1].as_str() {
        "bare" => count::bare(&paths, threads).unwrap(),
        "full" => count::full(&analyzer::Policy::default_policy(), &paths, threads).unwrap(),
        "tally" => {
            count::tally(&analyzer::Policy::default_policy(), &paths, threads).unwrap();
            Default::default()
        }
        "scan" => {
            for p in &paths {
                ingest::scan_for(std::fs::File::open(p).unwrap(), &ingest::Wants::nothing(), |_| ());
            }
            Default::default()
        }
        "scanall" => {
            for p in &paths {
                ingest::scan(std::fs::File::open(p).unwrap(), |_| ());
            }
            Default::default()
        }
        _ => panic!(),
    };
    writeln!(std::io::stdout(), "{:?} {:.3}", answer, t.elapsed().as_secs_f64()).unwrap();
}
