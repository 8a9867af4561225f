//! Lists that come in pages: where the next page is (distribution specification, "Listing Tags" and
//! "Listing Referrers"; RFC 8288).
//!
//! A list is whole or it is an error. What a registry says of where it goes on is often its own name
//! behind a proxy (another host or port, `http` for `https`, a path with something in front): that means
//! the same list, and is asked for where the list began. What is somewhere else cannot be followed, as
//! the registry's credentials are not for there.

use std::collections::HashSet;

use reqwest::{
    Url,
    header::{HeaderMap, LINK},
};

/// Pages in a row that bring nothing new. Registries send empty pages where they leave out what one may
/// not see, but not many.
const MAX_EMPTY_PAGES: usize = 20;

/// A walk through the pages of one list.
pub(super) struct Pages {
    /// Where the list begins.
    first: Url,
    /// Where the page is that is to be asked for.
    url: Url,
    seen: HashSet<String>,
    max: usize,
    empty: usize,
}

impl Pages {
    /// The list that begins at `first`, of at most `max` pages.
    pub(super) fn new(first: Url, max: usize) -> Self {
        let seen = HashSet::from([first.to_string()]);
        Self { url: first.clone(), first, seen, max, empty: 0 }
    }

    /// Where the page is that is to be asked for.
    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// Whether it is the first.
    pub(super) fn is_first(&self) -> bool {
        self.seen.len() == 1
    }

    /// Goes on to the next page, after one that came with `headers` from `from` and has brought something
    /// new or not. False at the end of the list; an error, which says why, if the rest cannot be had.
    pub(super) fn advance(
        &mut self,
        headers: &HeaderMap,
        from: &Url,
        is_new: bool,
    ) -> Result<bool, String> {
        let Some(target) = next_page(headers)? else { return Ok(false) };
        let target = from.join(&target).map_err(|_| unreadable())?;
        let next = self.followed(target)?;
        self.empty = if is_new { 0 } else { self.empty + 1 };
        if self.empty > MAX_EMPTY_PAGES {
            return Err(format!(
                "it sends more than {MAX_EMPTY_PAGES} pages in a row with nothing new on them"
            ));
        }
        if !self.seen.insert(next.to_string()) {
            return Err("its pages lead in a circle".to_owned());
        }
        if self.seen.len() > self.max {
            return Err(format!("it has more than {} pages", self.max));
        }
        self.url = next;
        Ok(true)
    }

    /// Where the list goes on at the registry, which says that it does at `target`.
    fn followed(&self, mut target: Url) -> Result<Url, String> {
        target.set_fragment(None);
        if target.path().ends_with(self.first.path()) {
            let mut next = self.first.clone();
            next.set_query(target.query());
            return Ok(next);
        }
        if target.origin() == self.first.origin() {
            return Ok(target);
        }
        let host = target.host_str().unwrap_or("another place");
        Err(format!("the rest of the list is said to be at {host}, which is not the registry"))
    }
}

fn unreadable() -> String {
    "it says that the list goes on, but not where, in a form that can be read".to_owned()
}

/// The target of the `Link` to the next page, if there is one. An error if there is a `Link` that cannot
/// be read.
fn next_page(headers: &HeaderMap) -> Result<Option<String>, String> {
    let mut unnamed = None;
    for value in headers.get_all(LINK) {
        let text = value.to_str().map_err(|_| unreadable())?;
        for link in links(text).ok_or_else(unreadable)? {
            match link.relations {
                Some(relations) => {
                    let mut relations = relations.split_whitespace();
                    if relations.any(|relation| relation.eq_ignore_ascii_case("next")) {
                        return Ok(Some(link.target));
                    }
                }
                // What else could it be? Other clients do not look at the relation at all.
                None => drop(unnamed.get_or_insert(link.target)),
            }
        }
    }
    Ok(unnamed)
}

/// One link of a header.
struct Link {
    target: String,
    /// The value of `rel`, if there is one.
    relations: Option<String>,
}

/// The links of a header; those without angle brackets, too. `None` if it cannot be read.
fn links(text: &str) -> Option<Vec<Link>> {
    let mut found = Vec::new();
    let mut rest = text.trim_start_matches(is_gap);
    while !rest.is_empty() {
        let (target, after) = match rest.strip_prefix('<') {
            Some(bracketed) => bracketed.split_once('>')?,
            None => rest.split_at(rest.find([';', ',']).unwrap_or(rest.len())),
        };
        let (relations, after) = parameters(after);
        let target = target.trim();
        if target.is_empty() {
            return None;
        }
        found.push(Link { target: target.to_owned(), relations });
        // Behind a link is a comma, or the end.
        rest = after.strip_prefix(',').or_else(|| after.is_empty().then_some(after))?;
        rest = rest.trim_start_matches(is_gap);
    }
    Some(found)
}

fn is_gap(c: char) -> bool {
    c.is_whitespace() || c == ','
}

/// The value of `rel` among the parameters at the beginning of `text`, and what is behind them.
fn parameters(text: &str) -> (Option<String>, &str) {
    let mut relations = None;
    let mut rest = text.trim_start();
    while let Some(parameter) = rest.strip_prefix(';') {
        let parameter = parameter.trim_start();
        let is_end = |c: char| matches!(c, ';' | ',' | '=') || c.is_whitespace();
        let (name, after) = parameter.split_at(parameter.find(is_end).unwrap_or(parameter.len()));
        rest = after.trim_start();
        if let Some(value) = rest.strip_prefix('=') {
            let value = value.trim_start();
            let (value, after) = match value.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
                None => value.split_at(value.find([';', ',', ' ', '\t']).unwrap_or(value.len())),
            };
            if name.eq_ignore_ascii_case("rel") {
                relations.get_or_insert(value.to_owned());
            }
            rest = after.trim_start();
        }
    }
    (relations, rest)
}

#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(text: &[u8]) {
    if let (Ok(value), Ok(first)) =
        (reqwest::header::HeaderValue::from_bytes(text), "https://r.io/v2/a/tags/list".parse())
    {
        let headers = HeaderMap::from_iter([(LINK, value)]);
        let mut pages = Pages::new(first, 2);
        let from = pages.url().clone();
        let _ = pages.advance(&headers, &from, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(links: &[&str]) -> HeaderMap {
        links.iter().map(|link| (LINK, link.parse().unwrap())).collect()
    }

    #[test]
    fn the_link_to_the_next_page() {
        for (links, next) in [
            (
                &[r#"</v2/a/tags/list?n=2&last=b>; rel="next""#][..],
                Some("/v2/a/tags/list?n=2&last=b"),
            ),
            (&["<a>; rel=prev, <b>; rel=next"], Some("b")),
            (&["<a>; rel=prev", "<b>; rel=next"], Some("b")),
            (&[r#"<a>;title="x, y; rel=next";rel=prev,<b,c>;rel="next last""#], Some("b,c")),
            (&[r#"<b> ; REL = "Next""#], Some("b")),
            (&[r#"</t?last=b>;rel="next"; title="x""#], Some("/t?last=b")),
            (&["/t?last=b; rel=next"], Some("/t?last=b")),
            (&["/t?last=b"], Some("/t?last=b")),
            (&["<a>"], Some("a")),
            (&["<a>; rel=first, <b>; rel=\"last\""], None),
            (&["<a>; rel=nextish"], None),
            (&[""], None),
            (&[], None),
        ] {
            assert_eq!(next_page(&headers(links)), Ok(next.map(str::to_owned)), "{links:?}");
        }
        for unreadable in ["<a", "<>; rel=next", "; rel=next", "<a> b", "<a>; rel=\"next\" x"] {
            assert!(next_page(&headers(&[unreadable])).is_err(), "{unreadable}");
        }
    }

    #[test]
    fn the_list_goes_on_where_it_began() {
        let first = "https://r.io/v2/a/b/tags/list?n=1000";
        for (link, next) in [
            ("/v2/a/b/tags/list?last=x", Some("https://r.io/v2/a/b/tags/list?last=x")),
            ("?last=x", Some("https://r.io/v2/a/b/tags/list?last=x")),
            ("list?last=x#y", Some("https://r.io/v2/a/b/tags/list?last=x")),
            ("http://r.io/v2/a/b/tags/list?last=x", Some("https://r.io/v2/a/b/tags/list?last=x")),
            ("//r.io:8443/v2/a/b/tags/list?last=x", Some("https://r.io/v2/a/b/tags/list?last=x")),
            (
                "http://registry.internal:8081/repository/proxy/v2/a/b/tags/list?last=x",
                Some("https://r.io/v2/a/b/tags/list?last=x"),
            ),
            ("/pages/2", Some("https://r.io/pages/2")),
            ("http://r.io/pages/2", None),
            ("https://else.io/v2/a/tags/list?last=x", None),
            ("https://else.io/pages/2?secret", None),
            ("file:///etc/passwd", None),
            ("http://[", None),
        ] {
            let mut pages = Pages::new(first.parse().unwrap(), 10);
            let from = pages.url().clone();
            let advanced = pages.advance(&headers(&[&format!("<{link}>; rel=next")]), &from, true);
            match next {
                Some(next) => {
                    assert_eq!(advanced, Ok(true), "{link}");
                    assert_eq!(pages.url().as_str(), next, "{link}");
                }
                None => assert!(!advanced.unwrap_err().contains("secret"), "{link}"),
            }
        }
    }

    #[test]
    fn every_walk_has_an_end() {
        let first: Url = "https://r.io/v2/a/tags/list".parse().unwrap();
        let to = |page: usize| headers(&[&format!("<?page={page}>; rel=next")]);
        let mut pages = Pages::new(first.clone(), 1000);
        assert!(pages.is_first());
        assert_eq!(pages.advance(&to(1), &first, true), Ok(true));
        assert!(!pages.is_first());
        assert_eq!(pages.advance(&to(2), &first, true), Ok(true));
        assert!(pages.advance(&to(1), &first, true).unwrap_err().contains("circle"));
        assert_eq!(Pages::new(first.clone(), 5).advance(&headers(&[]), &first, true), Ok(false));

        let walk = |max: usize, is_new: bool| {
            let mut pages = Pages::new(first.clone(), max);
            let mut steps = (1..).map(|page| pages.advance(&to(page), &first, is_new));
            steps.find_map(Result::err).unwrap()
        };
        assert!(walk(50, true).contains("more than 50 pages"));
        assert!(walk(50, false).contains("nothing new"));
    }
}
