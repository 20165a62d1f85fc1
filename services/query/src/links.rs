//! The `Link` header: where the first, previous, next and last page are (RFC 8288), as relative references that keep
//! the path and the query as they came but for `page`.

use std::fmt::Write;

use axum::http::{HeaderValue, Uri};

use crate::params::{self, Paging};

/// The longest path and query that links repeat, in bytes. A header holds up to four of them.
const LINKED_BYTES_MAX: usize = 4096;

/// The header of a page of `total` rows at `uri`; `None` where it would be too long.
pub(crate) fn links(uri: &Uri, paging: Paging, total: u64) -> Option<HeaderValue> {
    let last = total.div_ceil(paging.per_page).max(1);
    let page = paging.page;
    let pages = [
        ("first", Some(1)),
        // Behind a page past the end is the last one.
        ("prev", (page > 1).then(|| (page - 1).min(last))),
        ("next", (page < last).then(|| page + 1)),
        ("last", Some(last)),
    ];
    let target = target(uri);
    if target.len() > LINKED_BYTES_MAX {
        return None;
    }
    let links =
        pages.into_iter().filter_map(|(rel, page)| Some(format!(r#"<{target}{}>; rel="{rel}""#, page?)));
    HeaderValue::from_str(&links.collect::<Vec<_>>().join(", ")).ok()
}

/// `uri` up to the number of a page: `/contacts/…/events?type=opened&page=`.
fn target(uri: &Uri) -> String {
    let kept = params::pairs(uri.query().unwrap_or("")).filter(|pair| pair.name().as_deref() != Some("page"));
    let mut target = String::new();
    push_encoded(&mut target, uri.path());
    target.push('?');
    for pair in kept {
        push_encoded(&mut target, pair.raw());
        target.push('&');
    }
    target.push_str("page=");
    target
}

/// Adds `text`, with what may not stand in a header's `<…>` percent-encoded. An URI that came over HTTP has next to
/// nothing of it.
fn push_encoded(target: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b'<' | b'>' | b'"' | b'\\') {
            target.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(target, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rels(uri: &str, page: u64, per_page: u64, total: u64) -> Vec<String> {
        let uri: Uri = uri.parse().expect("a URI");
        let links = links(&uri, Paging { page, per_page }, total).expect("short");
        links.to_str().expect("text").split(", ").map(str::to_owned).collect()
    }

    #[test]
    fn the_query_is_kept_as_it_came() {
        assert_eq!(
            rels("/v1/campaigns/c/events?page=2&type=opened&from_date=2026-04-17T00:00:00%2B02:00&&x=a+b", 2, 50, 101),
            [1, 1, 3, 3].map(|page| page.to_string()).into_iter().zip(["first", "prev", "next", "last"]).map(|(page, rel)| format!(
                r#"</v1/campaigns/c/events?type=opened&from_date=2026-04-17T00:00:00%2B02:00&x=a+b&page={page}>; rel="{rel}""#
            )).collect::<Vec<_>>()
        );
        assert_eq!(rels("/e?p%61ge=7&pages=1", 7, 1, 1)[0], r#"</e?pages=1&page=1>; rel="first""#);
    }

    #[test]
    fn ends_have_no_further_page() {
        let only = |page, total| {
            let rels = rels("/e", page, 10, total);
            rels.iter()
                .map(|link| link.replace("</e?page=", "").replace(">; rel=", ""))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(only(1, 0), r#"1"first" 1"last""#);
        assert_eq!(only(1, 10), r#"1"first" 1"last""#);
        assert_eq!(only(1, 11), r#"1"first" 2"next" 2"last""#);
        assert_eq!(only(2, 11), r#"1"first" 1"prev" 2"last""#);
        assert_eq!(only(2_147_483_648, 11), r#"1"first" 2"prev" 2"last""#);
        assert_eq!(only(5, 0), r#"1"first" 1"prev" 1"last""#);
    }

    #[test]
    fn what_would_break_out_of_the_header_is_encoded() {
        let uri: Uri = "/e?a=b".parse().expect("a URI");
        assert!(links(&uri, Paging { page: 1, per_page: 1 }, 1).is_some());
        let mut target = String::new();
        push_encoded(&mut target, "a>\"ä");
        assert_eq!(target, "a%3E%22%C3%A4");
        let long: Uri = format!("/e?a={}", "b".repeat(LINKED_BYTES_MAX)).parse().expect("a URI");
        assert_eq!(links(&long, Paging { page: 1, per_page: 1 }, 1), None);
    }
}
