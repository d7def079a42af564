//! The URL of a request, and where a redirect leads from it.

use std::fmt;

use iri_string::resolve::FixedBaseResolver;
use iri_string::types::{UriAbsoluteStr, UriReferenceStr};

use crate::handlers::resolve::Host;
use crate::probe::Scheme;

#[derive(Clone, Debug)]
pub struct Url {
    pub scheme: Scheme,
    pub host: Host,
    pub port: u16,
    /// Path and query, with a leading slash, of characters that a URL may have.
    pub target: String,
    /// The header `Host` of the probe, if it has one.
    host_header: Option<String>,
}

impl Url {
    pub fn new(scheme: Scheme, host: &str, port: u16, path: &str, host_header: Option<String>) -> Self {
        let path = encode(path.as_bytes(), false);
        let slash = if path.starts_with('/') { "" } else { "/" };
        Self { scheme, host: Host::new(host), port, target: format!("{slash}{path}"), host_header }
    }

    /// The value of the header `Host`.
    pub fn host_header(&self) -> String {
        self.host_header.clone().unwrap_or_else(|| format!("{}:{}", self.host, self.port))
    }

    /// Where `location` leads from here. `None` if it is not the URL of a request.
    pub fn follow(&self, location: &[u8]) -> Option<Self> {
        let location = encode(location, true);
        let location = UriReferenceStr::new(&location).ok()?;
        let base = self.to_string();
        let resolver = FixedBaseResolver::new(UriAbsoluteStr::new(&base).ok()?);
        let resolved = resolver.resolve(location).to_string();
        let resolved = UriReferenceStr::new(&resolved).ok()?;
        let scheme = match resolved.scheme_str()?.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        let authority = resolved.authority_components()?;
        let port = match (authority.port(), scheme) {
            (None | Some(""), Scheme::Http) => 80,
            (None | Some(""), Scheme::Https) => 443,
            (Some(port), _) => port.parse().ok().filter(|&port| port != 0)?,
        };
        let host = authority.host();
        let host = Host::new(host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host));
        // The scope is known to the host only.
        let host = if host.is_same(&self.host) { self.host.clone() } else { host };
        let query = resolved.query_str().map(|query| format!("?{query}")).unwrap_or_default();
        let slash = if resolved.path_str().starts_with('/') { "" } else { "/" };
        let target = format!("{slash}{}{query}", resolved.path_str());
        // A location with a host has its own header.
        let host_header = self.host_header.clone().filter(|_| location.authority_str().is_none());
        Some(Self { scheme, host, port, target, host_header })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.scheme.as_str().to_ascii_lowercase();
        write!(f, "{scheme}://{}:{}{}", self.host, self.port, self.target)
    }
}

/// The text without its fragment, and with `%XX` for the bytes that RFC 3986 does not allow.
fn encode(text: &[u8], brackets: bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for (index, &byte) in text.iter().enumerate() {
        let escapes = |bytes: &[u8]| matches!(bytes, [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
        match byte {
            b'#' => break,
            b'%' if escapes(&text[index + 1..]) => encoded.push('%'),
            b'[' | b']' if brackets => encoded.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?".contains(&byte) => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::{Scheme, Url};

    fn url(path: &str) -> Url {
        Url::new(Scheme::Http, "10.0.2.15", 8080, path, Some("app.example".to_owned()))
    }

    #[test]
    fn a_path_becomes_the_target_of_a_request() {
        let rows = [
            ("/healthz", "/healthz"),
            ("healthz", "/healthz"),
            ("", "/"),
            ("/a b?q=ä#fragment", "/a%20b?q=%C3%A4"),
            ("/100%/%41", "/100%25/%41"),
            ("/x HTTP/1.1\r\nEvil: 1", "/x%20HTTP/1.1%0D%0AEvil:%201"),
            ("//other/x", "//other/x"),
        ];
        for (path, target) in rows {
            assert_eq!(url(path).target, target, "{path:?}");
        }
    }

    #[test]
    fn a_location_leads_to_a_url() {
        let rows = [
            ("/next", "http://10.0.2.15:8080/next"),
            ("next?x=1", "http://10.0.2.15:8080/a/next?x=1"),
            ("../../up", "http://10.0.2.15:8080/up"),
            ("?q", "http://10.0.2.15:8080/a/b?q"),
            ("https://10.0.2.15/", "https://10.0.2.15:443/"),
            ("HTTP://10.0.2.15:9000", "http://10.0.2.15:9000/"),
            ("//other.example/x", "http://other.example:80/x"),
            ("http://[fd00::1]:81/ü x", "http://[fd00::1]:81/%C3%BC%20x"),
        ];
        for (location, expected) in rows {
            let next = url("/a/b").follow(location.as_bytes()).map(|url| url.to_string());
            assert_eq!(next.as_deref(), Some(expected), "{location:?}");
        }
        for location in ["ftp://10.0.2.15/", "http://10.0.2.15:0/", "http://10.0.2.15:99999/", "http://[x/", "http:"] {
            assert!(url("/").follow(location.as_bytes()).is_none(), "{location:?}");
        }
    }

    #[test]
    fn the_host_header_of_the_probe_stays_for_a_relative_location() {
        assert_eq!(url("/").follow(b"/next").expect("a path").host_header(), "app.example");
        assert_eq!(url("/").follow(b"http://10.0.2.15/").expect("a URL").host_header(), "10.0.2.15:80");
    }

    #[test]
    fn a_scope_stays_on_the_host() {
        let url = Url::new(Scheme::Http, "fe80::1%tap0", 80, "/", None);
        assert_eq!(url.host_header(), "[fe80::1]:80");
        let next = url.follow(b"http://[fe80::1]/next").expect("a URL");
        assert_eq!(next.host, url.host);
    }
}
