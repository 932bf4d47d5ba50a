use std::time::Duration;

use tokio::time::{Instant, interval_at};

/// A person who waits for longer than this is told what for.
const PATIENCE: Duration = Duration::from_secs(1);
/// And again after this long.
const REPEAT: Duration = Duration::from_secs(10);

/// Waits for `work`; when it takes its time, says so on standard error as `doing`, for example `joining the
/// cluster`.
pub(super) async fn announce<T>(doing: &str, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    let started = Instant::now();
    let mut ticks = interval_at(started + PATIENCE, REPEAT);
    loop {
        tokio::select! {
            // The work is pinned outside and goes on; the interval keeps its place.
            biased;
            result = &mut work => return result,
            _ = ticks.tick() => match started.elapsed().as_secs() {
                0..=9 => eprintln!("{doing} …"),
                seconds => eprintln!("{doing} … still, after {seconds} s"),
            },
        }
    }
}
