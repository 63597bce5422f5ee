//! Addresses as people write them.

/// `host:port` from `host:port`, or from a host alone, which gets `port`. An IPv6 address stands in brackets.
pub fn with_port(text: &str, port: u16) -> Result<String, String> {
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control() || "/?#@,".contains(c)) {
        return Err(format!("`{text}` is no address: write host or host:port, such as localhost:{port}"));
    }
    let is_bracketed = text.starts_with('[') && text.ends_with(']');
    match text.rsplit_once(':') {
        Some(_) if is_bracketed => Ok(format!("{text}:{port}")),
        None => Ok(format!("{text}:{port}")),
        Some((host, _)) if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) => {
            Err(format!("`{text}` is no address: an IPv6 address stands in brackets, such as [::1]:{port}"))
        }
        Some((host, number)) if host.is_empty() || number.parse::<u16>().is_err() => {
            Err(format!("`{text}` is no address: write host or host:port, with a port up to 65535"))
        }
        Some(_) => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lnc_protocol::DEFAULT_PORT;

    #[test]
    fn a_host_alone_gets_the_port() {
        for (text, expected) in [
            ("localhost", "localhost:1992"),
            ("n1:7", "n1:7"),
            ("10.0.0.1", "10.0.0.1:1992"),
            ("[::1]", "[::1]:1992"),
            ("[::1]:7", "[::1]:7"),
        ] {
            assert_eq!(with_port(text, DEFAULT_PORT).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_to_write() {
        for (text, why) in [
            ("", "write host"),
            ("n1:port", "up to 65535"),
            ("n1:70000", "up to 65535"),
            (":7", "up to 65535"),
            ("::1", "brackets"),
            ("fe80::1:7", "brackets"),
            ("http://n1", "write host"),
            ("n1 :7", "write host"),
        ] {
            let refused = with_port(text, DEFAULT_PORT).expect_err(text);
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
