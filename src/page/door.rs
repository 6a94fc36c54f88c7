//! Who may see the page: whoever has opened its link, in the browser that opened it. Decisions alone; what is HTTP about it
//! is in `answers.rs`.
//!
//! The link is good once. It is exchanged for a cookie, which is what every other request is held against: a link that
//! stays in a terminal's history, or in a browser's, opens nothing.

use std::sync::{Mutex, PoisonError};

use shoal_worker::Secret;

/// Hexadecimal digits of the cookie's name: the cookies of one machine are shared by all of its ports.
const NAME_DIGITS: usize = 8;

pub(super) struct Door {
    /// Of the link; gone once it was opened.
    link: Mutex<Link>,
    name: String,
    session: blake3::Hash,
    session_text: String,
}

struct Link {
    token: blake3::Hash,
    is_used: bool,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Welcome,
    /// The link was opened: set the cookie, and go on without the token.
    Exchange,
    /// It already has a cookie, and needs no token.
    GoOn,
    NoCookie,
    WrongCookie,
    WrongToken,
    UsedToken,
    /// By another name than this machine's own: a page of elsewhere whose name was pointed here.
    WrongHost,
    /// A page of elsewhere asks.
    WrongPage,
}

/// What a request says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked<'a> {
    pub(super) host: Option<&'a str>,
    pub(super) cookies: Option<&'a str>,
    pub(super) token: Option<&'a str>,
    /// `Sec-Fetch-Site`, of browsers.
    pub(super) site: Option<&'a str>,
}

impl Door {
    /// A door, and the token of its link.
    pub(super) fn new() -> anyhow::Result<(Self, String)> {
        let (token, session, name) = (Secret::random()?, Secret::random()?, Secret::random()?);
        let (token, session_text) = (token.to_hex(), session.to_hex());
        let door = Self {
            link: Mutex::new(Link { token: blake3::hash(token.as_bytes()), is_used: false }),
            name: format!("shoal-{}", &name.to_hex()[..NAME_DIGITS]),
            session: blake3::hash(session_text.as_bytes()),
            session_text,
        };
        Ok((door, token))
    }

    pub(super) fn judge(&self, asked: Asked<'_>) -> Verdict {
        if !asked.host.is_some_and(is_this_machine) {
            return Verdict::WrongHost;
        }
        let has_cookie = self.knows(asked.cookies);
        if let Some(token) = asked.token {
            return self.open(token, has_cookie == Some(true));
        }
        if asked.site.is_some_and(|site| site != "same-origin" && site != "none") {
            return Verdict::WrongPage;
        }
        match has_cookie {
            Some(true) => Verdict::Welcome,
            Some(false) => Verdict::WrongCookie,
            None => Verdict::NoCookie,
        }
    }

    /// The value of `Set-Cookie`. It ends with the browser, and with this process.
    pub(super) fn cookie(&self) -> String {
        format!("{}={}; HttpOnly; SameSite=Strict; Path=/", self.name, self.session_text)
    }

    fn open(&self, token: &str, has_cookie: bool) -> Verdict {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        // `Hash` compares in constant time.
        match (blake3::hash(token.as_bytes()) == link.token, link.is_used, has_cookie) {
            (false, _, _) => Verdict::WrongToken,
            (true, _, true) => Verdict::GoOn,
            (true, true, false) => Verdict::UsedToken,
            (true, false, false) => {
                link.is_used = true;
                Verdict::Exchange
            }
        }
    }

    /// Whether the cookie is the right one; `None` without one of this name.
    fn knows(&self, cookies: Option<&str>) -> Option<bool> {
        let mut pairs = cookies?.split(';').filter_map(|pair| pair.trim().split_once('='));
        let (_, value) = pairs.find(|(name, _)| *name == self.name)?;
        Some(blake3::hash(value.as_bytes()) == self.session)
    }
}

/// By which names a browser on this machine, or at the end of a tunnel, comes here; at whichever port the tunnel has.
fn is_this_machine(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        Some(_) | None => (host, None),
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    ["127.0.0.1", "localhost", "[::1]"].contains(&name) && port.is_none_or(is_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked<'a>(token: Option<&'a str>, cookies: Option<&'a str>) -> Asked<'a> {
        Asked { host: Some("127.0.0.1:4000"), cookies, token, site: None }
    }

    fn value(door: &Door) -> String {
        door.cookie().split(';').next().unwrap().to_owned()
    }

    #[test]
    fn a_link_is_good_once_and_its_cookie_until_the_end() {
        let (door, token) = Door::new().unwrap();
        assert_eq!(door.judge(asked(None, None)), Verdict::NoCookie);
        assert_eq!(door.judge(asked(Some("0123"), None)), Verdict::WrongToken);
        assert_eq!(door.judge(asked(Some(&token), None)), Verdict::Exchange);
        assert_eq!(door.judge(asked(Some(&token), None)), Verdict::UsedToken);
        let cookie = value(&door);
        assert_eq!(door.judge(asked(Some(&token), Some(&cookie))), Verdict::GoOn);
        assert_eq!(door.judge(asked(None, Some(&cookie))), Verdict::Welcome);
        let among = format!("other=1; {cookie}; shoal-0=2");
        assert_eq!(door.judge(asked(None, Some(&among))), Verdict::Welcome);
        let wrong = format!("{cookie}0");
        assert_eq!(door.judge(asked(None, Some(&wrong))), Verdict::WrongCookie);
        // That of another page on this machine says nothing here.
        let (other, _) = Door::new().unwrap();
        assert_eq!(door.judge(asked(None, Some(&value(&other)))), Verdict::NoCookie);
    }

    #[test]
    fn a_cookie_is_out_of_reach_of_scripts_and_of_other_sites() {
        let cookie = Door::new().unwrap().0.cookie();
        assert!(cookie.contains("; HttpOnly") && cookie.contains("; SameSite=Strict"), "{cookie}");
    }

    #[test]
    fn only_names_of_this_machine_are_answered() {
        for good in ["127.0.0.1", "127.0.0.1:80", "localhost:8080", "[::1]:9", "[::1]"] {
            assert!(is_this_machine(good), "{good}");
        }
        let bad =
            ["", "example.com", "localhost.example.com", "127.0.0.1.example.com:80", "127.0.0.2"];
        for bad in bad.into_iter().chain(["127.0.0.1:x", "127.0.0.1:", "[::2]", "a:b:c"]) {
            assert!(!is_this_machine(bad), "{bad}");
        }
        let (door, token) = Door::new().unwrap();
        let elsewhere = Asked { host: Some("example.com"), ..asked(Some(&token), None) };
        assert_eq!(door.judge(elsewhere), Verdict::WrongHost);
        assert_eq!(door.judge(Asked { host: None, ..elsewhere }), Verdict::WrongHost);
        assert_eq!(
            door.judge(asked(Some(&token), None)),
            Verdict::Exchange,
            "the link is good still"
        );
    }

    #[test]
    fn a_page_of_elsewhere_is_refused_even_with_the_cookie() {
        let (door, _) = Door::new().unwrap();
        let cookie = value(&door);
        let from = |site| Asked { site: Some(site), ..asked(None, Some(&cookie)) };
        assert_eq!(door.judge(from("cross-site")), Verdict::WrongPage);
        assert_eq!(door.judge(from("same-site")), Verdict::WrongPage);
        assert_eq!(door.judge(from("same-origin")), Verdict::Welcome);
        assert_eq!(door.judge(from("none")), Verdict::Welcome);
    }
}
