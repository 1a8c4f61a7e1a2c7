use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use http::Response;
use serde_json::json;
use tokio::time::sleep;

use super::*;
use crate::auth::testing::{Server, both_keys, ok, rsa_jwk, status};

const RS256: &[Algorithm] = &[Algorithm::RS256];
const SECOND: Duration = Duration::from_secs(1);

/// What a fetch does.
enum Answer {
    /// Keys of these names, for so many seconds.
    Keys(&'static [&'static str], u64),
    /// The same, after so many seconds.
    Late(u64, &'static [&'static str], u64),
    Fails,
    Hangs,
}

/// Gives its answers one after the other, and the last one for ever.
struct Script {
    answers: Mutex<VecDeque<Answer>>,
    fetches: Arc<AtomicUsize>,
    under_way: AtomicUsize,
}

fn key_set(kids: &[&str]) -> KeySet {
    let keys: Vec<_> = kids.iter().map(|kid| rsa_jwk(json!({"kid": kid}))).collect();
    KeySet::parse(json!({"keys": keys}).to_string().as_bytes(), RS256).unwrap()
}

impl Source for Script {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        struct UnderWay<'a>(&'a AtomicUsize);
        impl Drop for UnderWay<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        assert_eq!(self.under_way.fetch_add(1, Ordering::SeqCst), 0, "one fetch at a time");
        let _under_way = UnderWay(&self.under_way);
        self.fetches.fetch_add(1, Ordering::SeqCst);
        let answer = {
            let mut answers = self.answers.lock().unwrap();
            if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0].clone() }
        };
        let fetched = |kids, age| Ok(Fetched { keys: key_set(kids), max_age: SECOND * age as u32 });
        match answer {
            Answer::Keys(kids, age) => fetched(kids, age),
            Answer::Late(seconds, kids, age) => {
                sleep(SECOND * seconds as u32).await;
                fetched(kids, age)
            }
            Answer::Fails => Err(CallError::Nonsense("scripted").into()),
            Answer::Hangs => std::future::pending().await,
        }
    }
}

impl Clone for Answer {
    fn clone(&self) -> Self {
        match *self {
            Self::Keys(kids, age) => Self::Keys(kids, age),
            Self::Late(seconds, kids, age) => Self::Late(seconds, kids, age),
            Self::Fails => Self::Fails,
            Self::Hangs => Self::Hangs,
        }
    }
}

fn cache(answers: impl Into<VecDeque<Answer>>) -> (KeyCache, impl Fn() -> usize) {
    let fetches = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&fetches);
    let answers = Mutex::new(answers.into());
    let cache = KeyCache::start(Script { answers, fetches, under_way: AtomicUsize::new(0) }, Arc::default());
    (cache, move || counted.load(Ordering::SeqCst))
}

async fn refusal(cache: &KeyCache, kid: &str) -> Option<Refusal> {
    cache.keys_with(kid).await.err()
}

#[tokio::test(start_paused = true)]
async fn the_first_verifications_wait_for_the_first_fetch() {
    let (cache, fetches) = cache([Answer::Late(2, &["a"], 3600)]);
    let all = join_all((0..100).map(|_| refusal(&cache, "a"))).await;
    assert!(all.iter().all(Option::is_none));
    assert_eq!(fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn keys_are_kept_for_their_max_age_and_refreshed_before_it_ends() {
    let (cache, fetches) = cache([Answer::Keys(&["a"], 1000), Answer::Keys(&["a", "b"], 1000)]);
    assert_eq!(refusal(&cache, "a").await, None);
    sleep(SECOND * 740).await;
    assert_eq!(fetches(), 1);
    sleep(SECOND * 170).await;
    assert_eq!(fetches(), 2);
    assert!(cache.state.borrow().keys_with("b").is_some(), "without anybody having asked for it");
}

#[tokio::test(start_paused = true)]
async fn old_keys_serve_past_their_max_age_while_the_endpoint_is_down() {
    let (cache, fetches) = cache([Answer::Keys(&["a"], 10), Answer::Fails, Answer::Hangs, Answer::Fails]);
    assert_eq!(refusal(&cache, "a").await, None);
    sleep(SECOND * 3600).await;
    assert_eq!(refusal(&cache, "a").await, None);
    assert!((60..200).contains(&fetches()), "it goes on asking, but not often: {}", fetches());
}

#[tokio::test(start_paused = true)]
async fn keys_that_the_issuer_withdrew_are_gone_after_the_refresh() {
    let (cache, _) = cache([Answer::Keys(&["a"], 10), Answer::Keys(&["b"], 10)]);
    assert_eq!(refusal(&cache, "a").await, None);
    sleep(SECOND * 10).await;
    assert_eq!(refusal(&cache, "b").await, None);
    assert_eq!(refusal(&cache, "a").await, Some(Refusal::UnknownKey));
}

#[tokio::test(start_paused = true)]
async fn a_hundred_who_ask_for_a_new_key_cause_one_fetch_and_all_get_it() {
    let (cache, fetches) = cache([Answer::Keys(&["a"], 3600), Answer::Late(1, &["a", "b"], 3600)]);
    assert_eq!(refusal(&cache, "a").await, None);
    let all = join_all((0..100).map(|_| refusal(&cache, "b"))).await;
    assert!(all.iter().all(Option::is_none));
    assert_eq!(fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_key_causes_at_most_one_fetch_in_five_seconds() {
    let (cache, fetches) = cache([Answer::Keys(&["a"], 86_400)]);
    assert_eq!(refusal(&cache, "a").await, None);
    let begin = Instant::now();
    for kid in 0..500_u32 {
        assert_eq!(refusal(&cache, &kid.to_string()).await, Some(Refusal::UnknownKey));
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(begin.elapsed(), SECOND * 50);
    assert_eq!(fetches(), 1 + 10);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_is_cut_after_three_seconds() {
    let (cache, _) = cache([Answer::Hangs, Answer::Keys(&["a"], 3600)]);
    let begin = Instant::now();
    assert_eq!(refusal(&cache, "a").await, Some(Refusal::KeysUnavailable));
    assert_eq!(begin.elapsed(), SECOND * 3);
    assert_eq!(refusal(&cache, "a").await, None, "the next try is asked for at once");
    assert_eq!(begin.elapsed(), SECOND * 3);
}

#[tokio::test(start_paused = true)]
async fn a_known_key_never_waits_for_a_fetch() {
    let (cache, _) = cache([Answer::Keys(&["a"], 10), Answer::Hangs]);
    assert_eq!(refusal(&cache, "a").await, None);
    sleep(SECOND * 9).await;
    assert!(cache.state.borrow().fetching);
    let begin = Instant::now();
    assert_eq!(refusal(&cache, "a").await, None);
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn without_any_keys_the_service_is_unavailable_until_they_come() {
    let (cache, fetches) = cache([Answer::Fails, Answer::Fails, Answer::Fails, Answer::Keys(&["a"], 3600)]);
    assert_eq!(refusal(&cache, "a").await, Some(Refusal::KeysUnavailable));
    sleep(SECOND * 8).await;
    assert_eq!(fetches(), 4, "the task goes on by itself");
    assert_eq!(refusal(&cache, "a").await, None);
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_cache() {
    let (cache, fetches) = cache([Answer::Keys(&["a"], 10)]);
    assert_eq!(refusal(&cache, "a").await, None);
    drop(cache);
    sleep(SECOND * 100).await;
    assert_eq!(fetches(), 1);
}

#[test]
fn max_age_is_what_the_answer_has_left() {
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let table: &[(&[(&str, &str)], Duration)] = &[
        (&[("cache-control", "public, max-age=3600, must-revalidate")], hours(1)),
        (&[("cache-control", "Max-Age=3600")], hours(1)),
        (&[("cache-control", "max-age=\"3600\"")], hours(1)),
        (&[("cache-control", "public"), ("cache-control", "max-age=3600")], hours(1)),
        (&[("cache-control", "s-maxage=1, max-age=3600")], hours(1)),
        (&[("cache-control", "max-age=7200"), ("age", "3600")], hours(1)),
        (&[("cache-control", "max-age=1")], SECOND),
        (&[("cache-control", "max-age=999999999999")], LONGEST_MAX_AGE),
        (&[("cache-control", "max-age=3600"), ("age", "3600")], DEFAULT_MAX_AGE),
        (&[("cache-control", "no-store, max-age=0")], DEFAULT_MAX_AGE),
        (&[("cache-control", "max-age=-1")], DEFAULT_MAX_AGE),
        (&[("cache-control", "max-age=99999999999999999999")], DEFAULT_MAX_AGE),
        (&[("cache-control", "max-age")], DEFAULT_MAX_AGE),
        (&[], DEFAULT_MAX_AGE),
    ];
    for (headers, expected) in table {
        let mut map = HeaderMap::new();
        for (name, value) in *headers {
            map.append(*name, value.parse().unwrap());
        }
        assert_eq!(max_age(&map), *expected, "{headers:?}");
    }
}

async fn fetch(server: &Server) -> Result<Fetched, FetchError> {
    Endpoint::new(&format!("{}/keys", server.url), RS256).unwrap().fetch().await
}

#[tokio::test]
async fn an_endpoint_gives_keys_and_how_long_they_last() {
    let server = Server::start(|_| ok(both_keys(), 19_302)).await;
    let fetched = fetch(&server).await.unwrap();
    assert!(fetched.keys.contains("rsa-1"));
    assert_eq!(fetched.max_age, SECOND * 19_302);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Server::start(|_| ok(both_keys(), 60)).await;
    let location = elsewhere.url.clone();
    let server = Server::start(move |_| {
        Response::builder().status(302).header("location", &location).body(String::new()).unwrap()
    })
    .await;
    let error = fetch(&server).await.err();
    assert!(matches!(error, Some(FetchError::Call(CallError::Status(status))) if status == 302), "{error:?}");
    assert_eq!(*elsewhere.asked.borrow(), 0);
}

#[tokio::test]
async fn https_is_never_spoken_in_the_clear() {
    let server = Server::start(|_| ok(both_keys(), 60)).await;
    let url = server.url.replace("http://", "https://");
    let fetched = Endpoint::new(&url, RS256).unwrap().fetch().await;
    assert!(matches!(fetched, Err(FetchError::Call(CallError::Failed(_)))));
    assert_eq!(*server.asked.borrow(), 0);
}

#[tokio::test]
async fn bad_answers_are_errors() {
    let huge = format!("{}{}", both_keys(), " ".repeat(300 * 1024));
    let server = Server::start(move |asked| match asked.number {
        1 => status(500),
        2 => status(204),
        3 => ok("<html>", 60),
        4 => ok(r#"{"keys":[]}"#, 60),
        _ => ok(huge.clone(), 60),
    })
    .await;
    assert!(matches!(fetch(&server).await, Err(FetchError::Call(CallError::Status(_)))));
    assert!(matches!(fetch(&server).await, Err(FetchError::Call(CallError::Status(_)))));
    assert!(matches!(fetch(&server).await, Err(FetchError::Keys(KeySetError::NotASet))));
    assert!(matches!(fetch(&server).await, Err(FetchError::Keys(KeySetError::NoneUsable))));
    assert!(matches!(fetch(&server).await, Err(FetchError::Call(CallError::TooLong))));
}

#[tokio::test]
async fn garbage_never_replaces_good_keys() {
    let server = Server::start(|asked| match asked.number {
        1 => ok(both_keys(), 1),
        2 => ok(r#"{"keys":[]}"#, 1),
        _ => ok("garbage", 1),
    })
    .await;
    let cache = KeyCache::start(Endpoint::new(&server.url, RS256).unwrap(), Arc::default());
    assert_eq!(refusal(&cache, "rsa-1").await, None);
    server.asked_at_least(3).await;
    assert_eq!(refusal(&cache, "rsa-1").await, None);
}
