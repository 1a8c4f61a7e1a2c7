//! What the instances and Redis say of themselves while they are measured.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::ClientLike as _;
use fred::types::config::Config;
use fred::types::{Builder, ClusterHash, CustomCommand};
use secrecy::ExposeSecret as _;
use tokio::time::timeout;
use url::Url;

use super::settings::LoadOptions;
use super::source::{Instance, Reading, RedisState, Source};

/// How long one reading may take.
const LIMIT: Duration = Duration::from_millis(900);

/// How often a run's first and last reading are tried: its figures rest on them.
pub(super) const TRIES: usize = 5;

impl Instance {
    /// Reads Prometheus's text format, as far as it is needed.
    fn parse(text: &str) -> Self {
        let mut instance = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap_or(line.len()));
            let (labels, value) = rest.rsplit_once('}').unwrap_or(("", rest));
            let Some(Ok(value)) = value.split_whitespace().next().map(str::parse::<f64>) else { continue };
            match name {
                "process_cpu_seconds_total" => instance.cpu = Some(value),
                "process_resident_memory_bytes" => instance.rss = Some(value),
                "duorelay_connections" => *instance.connections.get_or_insert(0.0) += value,
                "duorelay_dropped_total" => {
                    let cause = labels.split('"').nth(1).unwrap_or_default();
                    *instance.dropped.entry(cause.to_owned()).or_default() += value;
                }
                _ => {}
            }
        }
        instance
    }
}

impl RedisState {
    fn add(&mut self, info: &str) {
        for line in info.lines() {
            let (name, value) = line.trim().split_once(':').unwrap_or_default();
            let Ok(value) = value.parse::<f64>() else { continue };
            match name {
                "used_cpu_user" | "used_cpu_sys" => self.cpu += value,
                "total_commands_processed" => self.commands += value,
                "used_memory" => self.memory += value,
                _ => {}
            }
        }
    }
}

/// The instances, processes and Redis that are read.
#[derive(Debug)]
pub(super) struct Watch {
    http: reqwest::Client,
    metrics: Vec<Url>,
    sources: Vec<Arc<dyn Source>>,
    redis: Option<(Client, bool)>,
}

impl Watch {
    /// Connects to Redis; fails when that or the first reading does, since figures would be missing later.
    ///
    /// # Errors
    /// What gave no figures, and why.
    pub(super) async fn start(options: &LoadOptions) -> Result<(Self, Reading), Box<dyn Error>> {
        let http = reqwest::Client::builder().timeout(LIMIT).build()?;
        let redis = match &options.redis {
            None => None,
            Some(url) => {
                let problem = |error: fred::error::Error| format!("--redis-url: {}", error.details());
                let config = Config::from_url(url.expose_secret()).map_err(problem)?;
                let clustered = config.server.is_clustered();
                let client = Builder::from_config(config).build().map_err(problem)?;
                let connected = timeout(Duration::from_secs(5), client.init()).await;
                connected.map_err(|_| "--redis-url: no answer in 5 s")?.map_err(problem)?;
                Some((client, clustered))
            }
        };
        let (metrics, sources) = (options.metrics.clone(), options.sources_of_figures.clone());
        let watch = Self { http, metrics, sources, redis };
        let first = watch.read(Duration::ZERO, TRIES).await;
        let mut watched = options.watched().into_iter().zip(&first.instances);
        if let Some((name, _)) = watched.find(|(_, instance)| instance.is_none()) {
            return Err(format!("{name}: no figures there (--metrics)").into());
        }
        if watch.redis.is_some() && first.redis.is_none() {
            return Err("--redis-url: no answer to INFO".into());
        }
        Ok((watch, first))
    }

    /// Asks all at once, and again where somebody has not answered: so often at most. A busy machine may miss [`LIMIT`]
    /// once; an instance that has ended refuses at once. `at` is the time since the measuring began.
    pub(super) async fn read(&self, at: Duration, tries: usize) -> Reading {
        let is_whole = |reading: &Reading| {
            (self.redis.is_none() || reading.redis.is_some()) && reading.instances.iter().all(Option::is_some)
        };
        let mut reading = self.ask_all(at).await;
        for _ in 1..tries {
            if !is_whole(&reading) {
                reading = self.ask_all(at).await;
            }
        }
        reading
    }

    async fn ask_all(&self, at: Duration) -> Reading {
        let asking = futures_util::future::join_all(self.metrics.iter().map(|url| self.ask(url)));
        let (mut instances, redis) = tokio::join!(asking, self.ask_redis());
        instances.extend(self.sources.iter().map(|source| source.read()));
        Reading { at: at.as_secs_f64(), instances, redis }
    }

    async fn ask(&self, url: &Url) -> Option<Instance> {
        let response = self.http.get(url.clone()).send().await.ok()?.error_for_status().ok()?;
        Some(Instance::parse(&response.text().await.ok()?))
    }

    async fn ask_redis(&self) -> Option<RedisState> {
        let (client, clustered) = self.redis.as_ref()?;
        let command = CustomCommand::new_static("INFO", ClusterHash::Random, false);
        let asking = async {
            let mut state = RedisState::default();
            let nodes = if *clustered { client.active_connections() } else { Vec::new() };
            for node in &nodes {
                let info: String =
                    client.with_cluster_node(node).custom(command.clone(), vec!["everything"]).await.ok()?;
                state.add(&info);
            }
            if !clustered {
                state.add(&client.custom::<String, _>(command, vec!["everything"]).await.ok()?);
            }
            Some(state)
        };
        timeout(LIMIT, asking).await.ok()?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_from_prometheus_text() {
        let text = "# TYPE process_cpu_seconds counter\nprocess_cpu_seconds_total 12.5\n\
            process_resident_memory_bytes 1.5e7\nduorelay_connections{device=\"desktop\",protocol=\"v1\"} 3\n\
            duorelay_connections{device=\"mobile\",protocol=\"v1\"} 4\n\
            duorelay_dropped_total{cause=\"superseded\"} 9 1700000000\nbroken\nduorelay_x{a=\"} 5\"} 1\n# EOF\n";
        let instance = Instance::parse(text);
        let wanted = Instance {
            cpu: Some(12.5),
            rss: Some(1.5e7),
            connections: Some(7.0),
            dropped: [("superseded".to_owned(), 9.0)].into(),
        };
        assert_eq!(instance, wanted);
    }

    #[test]
    fn nodes_of_a_cluster_add_up() {
        let mut state = RedisState::default();
        let info = "# CPU\r\nused_cpu_sys:1.5\r\nused_cpu_user:2.0\r\nused_cpu_sys_children:9\r\n\
            total_commands_processed:100\r\nused_memory:1000\r\nused_memory_human:1K\r\n";
        state.add(info);
        state.add(info);
        assert_eq!(state, RedisState { cpu: 7.0, commands: 200.0, memory: 2000.0 });
    }

    #[tokio::test]
    async fn a_whole_reading_asks_again_where_nobody_answered() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}/metrics", listener.local_addr().unwrap())).unwrap();
        let server = tokio::spawn(async move {
            // The first one gets no answer before its connection is lost.
            drop(listener.accept().await);
            let (mut stream, _) = listener.accept().await.unwrap();
            let body = "process_resident_memory_bytes 7\n";
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 1024]).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await.unwrap();
        });
        let http = reqwest::Client::builder().timeout(LIMIT).build().unwrap();
        let watch = Watch { http, metrics: vec![url], sources: Vec::new(), redis: None };
        let reading = timeout(Duration::from_secs(10), watch.read(Duration::ZERO, TRIES)).await.unwrap();
        assert_eq!(reading.sum(|instance| instance.rss), Some(7.0));
        server.await.unwrap();
    }

    #[test]
    fn a_sum_needs_all_instances() {
        let one = Instance { rss: Some(5.0), ..Instance::default() };
        let reading = |instances| Reading { instances, ..Reading::default() };
        assert_eq!(reading(vec![]).sum(|instance| instance.rss), None);
        assert_eq!(reading(vec![Some(one.clone()), None]).sum(|instance| instance.rss), None);
        assert_eq!(reading(vec![Some(one.clone()), Some(one)]).sum(|instance| instance.rss), Some(10.0));
    }
}
