//! What was given, setting by setting, and what turned out to be wrong with it.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::Notice;
use super::command_line::{Flags, Name};
use super::parse::Mistake;
use super::table::{ALL, Fallback, Setting};

/// There is no value, because of a mistake that was noted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reported;

/// What reading a setting gives.
pub(super) type Read<T> = Result<T, Reported>;

/// The given values, and the mistakes found so far.
pub(super) struct Values {
    flags: Flags,
    variables: BTreeMap<String, String>,
    mistakes: Vec<Mistake>,
    notices: Vec<Notice>,
}

impl Values {
    pub(super) fn new(flags: Flags, environment: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut values =
            Self { flags, variables: BTreeMap::new(), mistakes: Vec::new(), notices: Vec::new() };
        for (name, value) in environment {
            let Some(name) = name.to_str() else { continue };
            if !name.starts_with("DUORELAY_") && !ALL.iter().any(|setting| setting.variable == name) {
                continue;
            }
            match value.into_string() {
                Ok(value) => drop(values.variables.insert(name.to_owned(), value)),
                Err(_) => values.mistakes.push(Mistake::of(name, "is not UTF-8")),
            }
        }
        values
    }

    /// What the flag or the variable says, without white space around it; `None` when that is nothing.
    pub(super) fn given(&self, setting: &Setting) -> Option<&str> {
        let text = self.flags.get(setting.variable).or_else(|| self.variables.get(setting.variable))?;
        Some(text.trim()).filter(|text| !text.is_empty())
    }

    /// Whether the value comes from the command line.
    pub(super) fn is_flag(&self, setting: &Setting) -> bool {
        self.flags.contains_key(setting.variable)
    }

    /// The checked value of a setting that may be absent.
    pub(super) fn optional<T>(
        &mut self,
        setting: &Setting,
        check: impl FnOnce(&str) -> Result<T, String>,
    ) -> Read<Option<T>> {
        let default = match setting.fallback {
            Fallback::Value(text) => Some(text),
            Fallback::Words(_) | Fallback::Nothing => None,
        };
        let checked = self.given(setting).or(default).map(check).transpose();
        checked.map_err(|problem| self.mistake(setting, problem))
    }

    /// The checked value of a setting whose default is in the table.
    pub(super) fn value<T>(
        &mut self,
        setting: &Setting,
        check: impl FnOnce(&str) -> Result<T, String>,
    ) -> Read<T> {
        self.optional(setting, check)?.ok_or_else(|| self.mistake(setting, "is missing"))
    }

    /// The checked value of a setting whose default depends on something else.
    pub(super) fn value_or<T>(
        &mut self,
        setting: &Setting,
        default: T,
        check: impl FnOnce(&str) -> Result<T, String>,
    ) -> Read<T> {
        self.optional(setting, check).map(|value| value.unwrap_or(default))
    }

    /// Notes what is wrong with a setting.
    pub(super) fn mistake(&mut self, setting: &Setting, problem: impl Into<String>) -> Reported {
        let from = if self.is_flag(setting) { format!(" (--{})", setting.flag) } else { String::new() };
        self.mistakes.push(Mistake::of(&format!("{}{from}", setting.variable), problem));
        Reported
    }

    /// Notes what the log should say.
    pub(super) fn notice(&mut self, notice: Notice) {
        self.notices.push(notice);
    }

    /// All mistakes, and all that the log should say.
    pub(super) fn finish(mut self, command: Name) -> (Vec<Mistake>, Vec<Notice>) {
        for (name, value) in &self.variables {
            let notice = match ALL.iter().find(|setting| setting.variable == name) {
                None => Notice::UnknownVariable {
                    name: name.clone(),
                    suggestion: if is_service_link(name, value) { None } else { similar(name) },
                },
                Some(setting) if setting.group.is_for_demo() || value.trim().is_empty() => continue,
                Some(setting) if command == Name::Demo => Notice::IgnoredByDemo(setting.variable),
                Some(_) => continue,
            };
            self.notices.push(notice);
        }
        (self.mistakes, self.notices)
    }
}

/// Kubernetes gives each container variables for the services of its namespace: a service called `duorelay`
/// brings `DUORELAY_SERVICE_HOST`, `DUORELAY_PORT=tcp://…` and more
/// (<https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables>).
fn is_service_link(name: &str, value: &str) -> bool {
    name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.contains("_TCP")
        || value.contains("://")
}

/// The setting whose variable has nearly this name, with or without `DUORELAY_`.
fn similar(name: &str) -> Option<&'static str> {
    let bare = |name: &'_ str| name.strip_prefix("DUORELAY_").unwrap_or(name).to_ascii_uppercase();
    let name = bare(name);
    ALL.iter()
        .map(|setting| (strsim::damerau_levenshtein(&bare(setting.variable), &name), setting.variable))
        .min()
        .filter(|&(distance, variable)| distance <= bare(variable).len() / 4)
        .map(|(_, variable)| variable)
}
