use super::*;

fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
    line.unwrap_or_else(|| panic!("no {series} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn the_process_stands_beside_our_own_metrics() {
    let (_file, _other) = (std::fs::File::open("/proc/self/stat"), std::fs::File::open("/proc/self/stat"));
    for format in [Format::OpenMetrics, Format::Text] {
        let text = Metrics::default().encode(format);
        let cpu = value(&text, "process_cpu_seconds_total");
        assert!(cpu > 0.0 && cpu < 3600.0, "{cpu}");
        let rss = value(&text, "process_resident_memory_bytes");
        assert!((1e6..1e11).contains(&rss) && value(&text, "process_virtual_memory_bytes") >= rss, "{rss}");
        let open = value(&text, "process_open_fds");
        assert!(open >= 5.0 && open <= value(&text, "process_max_fds"), "{open}");
        assert!(value(&text, "process_threads") >= 1.0);
        assert!(value(&text, "process_start_time_seconds") > 1.7e9);
    }
}

#[test]
fn every_series_is_there_from_the_start() {
    let metrics = Metrics::default();
    let before = metrics.encode(Format::Text);
    for device in Device::ALL {
        for protocol in [Protocol::Classic, Protocol::V1] {
            metrics.connected(device, protocol);
        }
    }
    metrics.handshake(None);
    for reliable in [false, true] {
        for path in [Path::Local, Path::Backplane] {
            metrics.frame(reliable, path, 7);
        }
    }
    metrics.dropped(Dropped::Unreadable, 1);
    metrics.published(PublishResult::Failed);
    metrics.overwritten(TakeOver::HandOver);
    (1000..5000).for_each(|code| metrics.closed(code));
    Refusal::ALL.iter().for_each(|refusal| metrics.error_sent(refusal.code()));
    metrics.limits(None, 1, 2);
    let after = metrics.encode(Format::Text);
    let series = |text: &str| {
        let names = text.lines().filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()));
        names.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(series(&before), series(&after));
    for (name, count) in [
        (r#"duorelay_frames_total{lane="reliable",path="backplane"}"#, 1.0),
        (r#"duorelay_frame_bytes_total{lane="volatile",path="local"}"#, 7.0),
        (r#"duorelay_dropped_total{cause="unreadable"}"#, 1.0),
        (r#"duorelay_backplane_publishes_total{result="failed"}"#, 1.0),
        (r#"duorelay_closes_total{code="4001"}"#, 1.0),
        (r#"duorelay_closes_total{code="other"}"#, 3987.0),
        ("duorelay_max_connections", f64::INFINITY),
    ] {
        assert!(value(&after, name).total_cmp(&count).is_eq(), "{name} is {}", value(&after, name));
    }
}

#[test]
fn workers_shares_add_up() {
    let gauge = Gauge::default();
    let [one, other] = [WorkerGauge::of(&gauge), WorkerGauge::of(&gauge)];
    one.set(5);
    other.set(7);
    one.set(1);
    assert_eq!(gauge.get(), 8);
}
