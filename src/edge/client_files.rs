//! The JavaScript client, which every instance serves: a page needs no package for it.
//!
//! The file is committed as it is served, so that building the relay needs no Node. The relay compresses it once, when
//! the first page asks.

use std::io::Write;
use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG,
    IF_NONE_MATCH, VARY,
};
use http::{HeaderMap, HeaderValue, StatusCode};

/// `GET /duorelay-direct.js`, which `duorelay.js` loads where the direct path is on.
pub static DIRECT: LazyLock<ClientFile> =
    LazyLock::new(|| ClientFile::new("text/javascript", include_str!("../client/js/duorelay-direct.js")));

/// Served as `GET /duorelay.js`.
pub static SCRIPT: LazyLock<ClientFile> =
    LazyLock::new(|| ClientFile::new("text/javascript", include_str!("../client/js/duorelay.js")));

/// Served as `GET /duorelay.d.ts`.
pub static TYPES: LazyLock<ClientFile> =
    LazyLock::new(|| ClientFile::new("text/plain", include_str!("../client/js/duorelay.d.ts")));

/// A file in the two forms that it can be sent in.
pub struct ClientFile {
    content_type: &'static str,
    plain: Form,
    gzip: Form,
}

/// Two forms of a file have two entity tags: caches must not mix them (RFC 9110, section 8.8.3.3).
struct Form {
    body: Bytes,
    tag: String,
}

impl ClientFile {
    fn new(content_type: &'static str, text: &'static str) -> Self {
        let hash: String =
            digest(&SHA256, text.as_bytes()).as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        // Writing to memory cannot fail; an empty form is never chosen.
        let compressed =
            encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish()).unwrap_or_default();
        Self {
            content_type,
            plain: Form { body: Bytes::from_static(text.as_bytes()), tag: format!("\"{hash}\"") },
            gzip: Form { body: compressed.into(), tag: format!("\"{hash}-gzip\"") },
        }
    }

    /// The answer to a request with these headers. Pages of any origin may read it: the client is public.
    pub fn answer(&self, asked: &HeaderMap) -> Response {
        let compressed = accepts_gzip(asked) && !self.gzip.body.is_empty();
        let form = if compressed { &self.gzip } else { &self.plain };
        let mut response = if self.is_known(asked) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            form.body.clone().into_response()
        };
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        if let Ok(tag) = HeaderValue::from_str(&form.tag) {
            headers.insert(ETAG, tag);
        }
        if compressed && response.status() == StatusCode::OK {
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }

    /// Either form proves that the asker has the file. Balancers that compress by themselves make a tag weak (`W/`),
    /// which is enough here (RFC 9110, section 13.1.2).
    fn is_known(&self, asked: &HeaderMap) -> bool {
        values(asked, IF_NONE_MATCH)
            .map(|tag| tag.strip_prefix("W/").unwrap_or(tag))
            .any(|tag| tag == "*" || tag == self.plain.tag || tag == self.gzip.tag)
    }
}

/// RFC 9110, section 12.5.3: `gzip;q=0` forbids it. `*` is no reason to compress.
fn accepts_gzip(asked: &HeaderMap) -> bool {
    values(asked, ACCEPT_ENCODING).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, "q=1"));
        let refused = weight
            .trim()
            .strip_prefix("q=")
            .is_some_and(|weight| weight.parse::<f32>().is_ok_and(|weight| weight <= 0.0));
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

/// The members of a header's list.
fn values(headers: &HeaderMap, name: http::HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(headers: &[(http::HeaderName, &'static str)]) -> Response {
        let asked =
            headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        SCRIPT.answer(&asked)
    }

    fn header(response: &Response, name: http::HeaderName) -> Option<&str> {
        response.headers().get(name).and_then(|value| value.to_str().ok())
    }

    #[test]
    fn who_accepts_gzip_gets_it() {
        for (accepted, encoding) in [
            ("gzip", Some("gzip")),
            ("br, GZIP;q=0.5", Some("gzip")),
            ("gzip; q=0", None),
            ("gzip;q=0.0, identity", None),
            ("br", None),
            ("*", None),
        ] {
            let response = ask(&[(ACCEPT_ENCODING, accepted)]);
            assert_eq!(header(&response, CONTENT_ENCODING), encoding, "{accepted}");
            assert_eq!(header(&response, VARY), Some("accept-encoding"));
        }
        assert!(SCRIPT.gzip.body.len() * 2 < SCRIPT.plain.body.len());
    }

    #[test]
    fn who_has_the_file_gets_304() {
        let tag = &SCRIPT.plain.tag;
        let compressed = &SCRIPT.gzip.tag;
        assert_ne!(tag, compressed);
        for known in
            [tag.clone(), compressed.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()]
        {
            let asked = [(IF_NONE_MATCH, HeaderValue::from_str(&known).unwrap())].into_iter().collect();
            let response = SCRIPT.answer(&asked);
            assert_eq!(response.status(), StatusCode::NOT_MODIFIED, "{known}");
            assert_eq!(header(&response, ETAG), Some(tag.as_str()));
            assert_eq!(header(&response, CONTENT_ENCODING), None);
        }
        let response = ask(&[(IF_NONE_MATCH, "\"another\"")]);
        assert_eq!(response.status(), StatusCode::OK);
    }
}
