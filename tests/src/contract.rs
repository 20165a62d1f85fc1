//! What the contract promises, as checks that any [`Stack`](crate::stack::Stack) has to pass.
//!
//! A check makes an account of its own, so that all of them run at once on one stack.
//! [`contract_tests!`](crate::contract_tests) makes a test of each, for one way of running Backstamp.
//!
//! | module | what of the contract |
//! | --- | --- |
//! | [`examples`] | the examples of both references |
//! | [`access`] | keys, permissions, the rate limit, and that they come first |
//! | [`paging`] | pages, totals, order, links |
//! | [`commands`] | keys, ready lines, health, metrics, an orderly end |
//! | [`filters`] | types, groups, contacts, bounds of time |
//! | [`http`] | methods, headers, envelopes, compression |
//! | [`rows`] | what a row shows, and which events show where |
//! | [`names`] | references and addresses, before and after events |
//! | [`joining`] | events and their `send`, in either order |
//! | [`existence`] | what is known, what is not, and retention |
//! | [`tenants`] | that a key sees nothing of another account |
//! | [`intake`] | bodies, rejections, every good and bad example |
//! | [`fixtures`] | reads the examples in `schemas/` |

pub mod access;
pub mod commands;
pub mod examples;
pub mod existence;
pub mod filters;
pub mod fixtures;
pub mod http;
pub mod intake;
pub mod joining;
pub mod names;
pub mod paging;
pub mod rows;
pub mod tenants;

use chrono::{DateTime, SecondsFormat, SubsecRound, TimeDelta, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

/// Makes a test of each check. `$stack` is the path of an async function that returns the stack, as the modules see it
/// that this makes: `super::stack`.
#[macro_export]
macro_rules! contract_tests {
    ($stack:path) => {
        $crate::contract_tests! { @ $stack;
            access {
                the_key_comes_first_then_the_permission_the_query_and_existence,
                the_rate_limit_comes_before_the_query_and_counts_reads_and_intake_apart,
                a_limit_that_is_off_is_not_shown,
                each_permission_opens_its_own_endpoint,
                a_revoked_key_stops_working,
                an_expired_key_stops_working,
            }
            commands {
                keys_are_created_listed_and_revoked,
                bad_arguments_of_keys_are_refused,
                services_say_that_they_are_ready,
                metrics_count_what_happens_under_their_declared_names,
                sigterm_drains_and_ends_with_zero,
            }
            examples {
                the_campaign_streams_example,
                the_contact_timelines_example,
                the_errors_of_both_references,
            }
            existence {
                a_reference_or_any_event_makes_it_exist,
                what_was_never_heard_of_is_404,
                rows_and_totals_end_at_retention,
                what_expired_on_arrival_leaves_its_campaign_and_contact,
            }
            filters {
                each_type_of_the_campaign_stream,
                each_type_and_group_of_the_contact_timeline,
                one_contact_of_a_campaign,
                bounds_of_the_campaign_stream,
                bounds_of_the_contact_timeline,
                bad_values_are_refused,
                empty_repeated_and_unknown_parameters,
                a_parameter_twice_with_different_values,
            }
            http {
                every_answer_says_until_when_everything_is_visible,
                a_request_id_is_kept_or_made,
                every_answer_shows_the_rate_limit,
                head_is_get_without_its_body,
                options_tell_the_methods,
                other_methods_and_paths_answer_in_the_campaign_streams_envelope,
                bodies_are_compressed_when_asked_for,
            }
            intake {
                one_object_an_array_and_lines,
                an_account_may_be_left_out_and_anothers_is_refused,
                what_is_bad_is_rejected_and_the_rest_is_taken,
                an_event_may_be_a_day_ahead,
                nothing_accepted_is_400,
                a_body_over_eight_mebibytes_is_413,
                references_over_http,
                every_good_event_is_taken_and_shown,
                every_good_reference_is_taken,
                every_bad_event_is_rejected_with_its_code,
                every_bad_reference_is_rejected_with_its_code,
            }
            joining {
                opens_before_their_send,
                a_send_before_what_follows_it,
                what_an_event_says_itself_wins,
                an_event_that_waits_shows_nowhere_and_messages_of_others_do_not_join,
            }
            names {
                names_are_current_whatever_came_first,
                a_deleted_references_last_name_stays,
                the_email_is_the_events_or_the_sends_or_the_references,
            }
            paging {
                page_and_per_page_of_the_campaign_stream,
                page_and_per_page_of_the_contact_timeline,
                newest_first_and_ties_by_id_descending,
                there_is_no_limit_of_depth,
                links_lead_through_the_pages,
            }
            rows {
                times_are_shown_in_whole_seconds_of_utc,
                opt_outs_of_a_campaign_are_unsubscribed,
                replies_and_complaints_are_not_on_the_contact_timeline,
                list_management_clicks_are_on_neither,
                configured_patterns_are_list_management_and_words_are_not,
                references_stand_on_the_rows_that_they_apply_to,
                metadata_and_details,
                uuids_are_shown_in_lower_case_and_other_ids_as_uuid_v5,
                repeats_change_nothing,
            }
            tenants {
                what_is_anothers_answers_as_what_is_unknown,
                nothing_of_anothers_comes_through_ones_own,
                the_intake_tells_nothing_of_other_accounts,
            }
        }
    };
    (@ $stack:path; $($module:ident { $($check:ident),* $(,)? })*) => {
        $(mod $module {
            $(#[tokio::test]
            async fn $check() {
                Box::pin($crate::contract::$module::$check($stack().await)).await;
            })*
        })*
    };
}

/// An event, with `more` in it.
#[must_use]
pub fn event(id: &str, event_type: &str, at: DateTime<Utc>, more: &Value) -> Value {
    let mut event = json!({ "id": id, "type": event_type, "occurred_at": exact(at) });
    for (name, value) in more.as_object().into_iter().flatten() {
        event[name] = value.clone();
    }
    event
}

/// The time that an event happened so many minutes ago, in whole seconds.
#[must_use]
pub fn minutes_ago(minutes: i64) -> DateTime<Utc> {
    Utc::now().trunc_subsecs(0) - TimeDelta::minutes(minutes)
}

/// Some noon, so many days ago.
#[must_use]
pub fn noon(days_ago: i64) -> DateTime<Utc> {
    let day = Utc::now().date_naive() - TimeDelta::days(days_ago);
    day.and_hms_opt(12, 0, 0).expect("noon is a time").and_utc()
}

/// A time as both endpoints show it.
#[must_use]
pub fn shown(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A time to the millisecond.
#[must_use]
pub fn exact(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A new id for a contact, or for anything.
#[must_use]
pub fn new_id() -> String {
    Uuid::new_v4().to_string()
}

/// An error of the campaign stream, or of the contact timeline without details.
#[must_use]
pub fn error(code: &str, message: &str) -> Value {
    json!({ "error": { "code": code, "message": message } })
}
