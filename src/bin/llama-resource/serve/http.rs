//! The server: one thread, limits on everything that a client can make grow.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::header::{
    ACCEPT, ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderMap, HeaderValue,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use llama_resource_instrumentation::export::{live, prometheus};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

use super::body::Answer;
use super::events::{self, Query};
use super::watch::Shared;

/// Connections at one time. Further ones wait until the system's own queue is full.
const MOST_CONNECTIONS: usize = 256;

/// Answers that go on (events that are followed, summaries that come by themselves) at one time.
const MOST_STREAMS: usize = 64;

/// How long a client may take for the head of a request; an idle connection is closed after it, too.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);

/// How long an answer may wait for a client that does not read on.
const READ_PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of a request's head.
const MOST_HEAD_BYTES: usize = 16 << 10;

/// Fields of a request's head.
const MOST_FIELDS: usize = 64;

/// Between two summaries that come by themselves; they come only when something is new.
const SUMMARY_PERIOD: Duration = Duration::from_millis(200);

/// The page, with its style and its program within.
const PAGE: &str = include_str!("page.html");

/// The page may run its own program and ask this server, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the server needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What a client must show; nothing on loopback.
    pub token: Option<String>,
    /// The address.
    pub address: SocketAddr,
    /// Which metrics are wanted.
    pub options: prometheus::Options,
}

struct Server {
    shared: Arc<Shared>,
    settings: Settings,
    streams: Arc<Semaphore>,
}

/// Serves until `until` is done.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, settings: Settings, until: impl Future<Output = ()>) {
    let server = Arc::new(Server { shared, settings, streams: Arc::new(Semaphore::new(MOST_STREAMS)) });
    let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    tokio::pin!(until);
    loop {
        let Ok(place) = Arc::clone(&connections).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut until => return,
        };
        let Ok((stream, _)) = accepted else {
            // No descriptor is left, say: others will give theirs back.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            let service = service_fn(|request| answer(Arc::clone(&server), request));
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_PATIENCE)
                .max_buf_size(MOST_HEAD_BYTES)
                .max_headers(MOST_FIELDS);
            // A client's mistake, or its going away, is nobody else's business.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

async fn answer(server: Arc<Server>, request: Request<hyper::body::Incoming>) -> Result<Response<Answer>, Infallible> {
    let pairs = pairs(request.uri().query().unwrap_or_default());
    let mut response = match server.refusal(&request, &pairs) {
        Some(refused) => refused,
        None => server.answer(&request, &pairs),
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if request.method() == Method::HEAD {
        *response.body_mut() = Answer::Whole(None);
    }
    Ok(response)
}

impl Server {
    /// Why a request gets nothing.
    fn refusal(
        &self,
        request: &Request<hyper::body::Incoming>,
        pairs: &[(String, String)],
    ) -> Option<Response<Answer>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut refused = problem(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Some(refused);
        }
        if self.settings.token.is_none() && !is_own_name(request.headers(), self.settings.address) {
            // A page of the web that has its own name lead to this machine.
            return Some(problem(StatusCode::FORBIDDEN, "the Host header does not name this server"));
        }
        let token = self.settings.token.as_deref()?;
        let bearer = request.headers().get(AUTHORIZATION).and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
        let given = bearer.or_else(|| pairs.iter().find(|(n, _)| n == "token").map(|(_, v)| v.as_str()));
        // `/healthz` says nothing of the host, and whoever asks it has no secrets.
        if given.is_some_and(|g| is_same(g, token)) || request.uri().path() == "/healthz" {
            return None;
        }
        let mut refused =
            problem(StatusCode::UNAUTHORIZED, "a token is needed: `Authorization: Bearer TOKEN`, or `?token=TOKEN`");
        refused.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        Some(refused)
    }

    fn answer(&self, request: &Request<hyper::body::Incoming>, pairs: &[(String, String)]) -> Response<Answer> {
        match request.uri().path() {
            "/" => {
                let mut page = with_type("text/html; charset=utf-8", PAGE);
                page.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
                page
            }
            "/metrics" => {
                let accept = request.headers().get(ACCEPT).and_then(|a| a.to_str().ok()).unwrap_or_default();
                let openmetrics = prometheus::wants_openmetrics(accept);
                let options = prometheus::Options { openmetrics, ..self.settings.options };
                let page = self.shared.sources(|sources| prometheus::page(sources, now_s(), options));
                with_type(if openmetrics { prometheus::OPENMETRICS } else { prometheus::CLASSIC }, page)
            }
            "/api/v1/summary" if pairs.iter().any(|(n, v)| n == "follow" && v != "0") => self.summaries(),
            "/api/v1/summary" => with_type("application/json", summary(&self.shared).to_string()),
            "/api/v1/resource-logs" => match Query::parse(pairs) {
                Ok(query) => self.events(query),
                Err(message) => problem(StatusCode::BAD_REQUEST, &message),
            },
            "/healthz" => {
                let caught_up = self.shared.caught_up.load(Ordering::Acquire);
                let status = if caught_up { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                let mut health = with_type("application/json", json!({ "caught_up": caught_up }).to_string());
                *health.status_mut() = status;
                health
            }
            _ => problem(
                StatusCode::NOT_FOUND,
                "there are /, /metrics, /api/v1/summary, /api/v1/resource-logs and /healthz",
            ),
        }
    }

    fn events(&self, query: Query) -> Response<Answer> {
        let kind = if query.sse { "text/event-stream" } else { "application/x-ndjson" };
        self.stream(kind, |shared| events::open(shared, query))
    }

    /// A summary whenever there is something new.
    fn summaries(&self) -> Response<Answer> {
        self.stream("text/event-stream", |shared| {
            let (sender, receiver) = mpsc::channel(1);
            let shared = Arc::clone(shared);
            tokio::spawn(async move {
                let mut told = u64::MAX;
                loop {
                    let version = shared.version.load(Ordering::Acquire);
                    if version != told {
                        told = version;
                        let piece = format!("data: {}\n\n", summary(&shared));
                        if sender.send(piece.into()).await.is_err() {
                            return;
                        }
                    }
                    if sender.is_closed() {
                        return;
                    }
                    tokio::time::sleep(SUMMARY_PERIOD).await;
                }
            });
            receiver
        })
    }

    /// An answer that goes on, if there is room for one more.
    fn stream(
        &self,
        kind: &'static str,
        open: impl FnOnce(&Arc<Shared>) -> mpsc::Receiver<hyper::body::Bytes>,
    ) -> Response<Answer> {
        let Ok(place) = Arc::clone(&self.streams).try_acquire_owned() else {
            return problem(StatusCode::SERVICE_UNAVAILABLE, "too many clients follow already; try again later");
        };
        let mut from = open(&self.shared);
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let _place = place;
            while let Some(piece) = from.recv().await {
                // A client that stops reading must not hold its place for ever.
                match tokio::time::timeout(READ_PATIENCE, sender.send(piece)).await {
                    Ok(Ok(())) => {}
                    _ => return,
                }
            }
        });
        let mut response = Response::new(Answer::Pieces(receiver));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }
}

fn summary(shared: &Shared) -> Value {
    let now = now_s();
    let logs = shared.logs();
    let one = |w: &super::watch::Watched| live::host(&w.name, &w.path, &w.live, w.taken, w.trouble.as_deref(), now);
    json!({ "summary_version": live::SUMMARY_VERSION, "now_unix_s": now, "hosts": logs.iter().map(one).collect::<Vec<_>>() })
}

fn with_type(kind: &'static str, text: impl Into<hyper::body::Bytes>) -> Response<Answer> {
    let mut response = Response::new(Answer::text(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn problem(status: StatusCode, message: &str) -> Response<Answer> {
    let mut response = with_type("application/json", json!({ "error": message }).to_string());
    *response.status_mut() = status;
    response
}

/// Whether the `Host` header is what a client on this machine writes: the address, or `localhost`.
fn is_own_name(headers: &HeaderMap, address: SocketAddr) -> bool {
    let Some(host) = headers.get(HOST).and_then(|h| h.to_str().ok()) else { return true };
    let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.contains(']') { host } else { name });
    name.eq_ignore_ascii_case("localhost") || name.trim_matches(['[', ']']).parse() == Ok(address.ip())
}

/// Compares without telling by its time how much was right.
fn is_same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

/// `name=value` pairs of an address.
fn pairs(query: &str) -> Vec<(String, String)> {
    let plain = |text: &str| {
        let mut out = Vec::with_capacity(text.len());
        let mut bytes = text.bytes();
        while let Some(b) = bytes.next() {
            match b {
                b'+' => out.push(b' '),
                b'%' => {
                    let digits = [bytes.next().unwrap_or(b' '), bytes.next().unwrap_or(b' ')];
                    let value = std::str::from_utf8(&digits).ok().and_then(|d| u8::from_str_radix(d, 16).ok());
                    out.push(value.unwrap_or(b'?'));
                }
                b => out.push(b),
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (plain(name), plain(value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{HOST, HeaderMap, is_own_name, is_same, pairs};

    #[test]
    fn addresses_are_taken_apart() {
        let own = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        assert_eq!(
            pairs("event=a%2Cb&follow&x=1+2&%"),
            [own("event", "a,b"), own("follow", ""), own("x", "1 2"), own("?", "")]
        );
        assert!(pairs("").is_empty());
    }

    #[test]
    fn a_name_that_leads_here_is_not_this_server() {
        let asked = |host: &str, address: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            is_own_name(&headers, address.parse().unwrap())
        };
        for host in ["127.0.0.1:9464", "localhost:9464", "LOCALHOST", "127.0.0.1"] {
            assert!(asked(host, "127.0.0.1:9464"), "{host}");
        }
        assert!(asked("[::1]:9464", "[::1]:9464") && asked("[::1]", "[::1]:9464"));
        for host in ["evil.example:9464", "127.0.0.2", "localhost.evil.example", ""] {
            assert!(!asked(host, "127.0.0.1:9464"), "{host}");
        }
    }

    #[test]
    fn tokens_are_compared_whole() {
        assert!(is_same("abc", "abc") && !is_same("abc", "abd") && !is_same("abc", "ab") && !is_same("", "a"));
    }
}
