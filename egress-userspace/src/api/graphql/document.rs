//! A query and its variables.

use std::collections::HashMap;

use async_graphql_parser::Positioned;
use async_graphql_parser::types::{
    DocumentOperations, Field, FragmentDefinition, OperationType, Selection, SelectionSet,
};
use async_graphql_value::indexmap::IndexMap;
use async_graphql_value::{ConstValue, Name, Value};
use serde_json::Value as Json;

use super::Problem;

/// Fragments within fragments.
const MAX_DEPTH: usize = 8;
/// Fields of one selection, fragments included.
const MAX_FIELDS: usize = 100;

/// One operation, ready to be answered.
#[derive(Debug)]
pub(super) struct Document {
    selection: SelectionSet,
    fragments: HashMap<Name, Positioned<FragmentDefinition>>,
    variables: HashMap<Name, ConstValue>,
}

impl Document {
    /// Reads a query. Variables are of whatever type their values are: what takes them says what it needs.
    pub(super) fn parse(query: &str, name: Option<&str>, given: &Json) -> Result<Self, Problem> {
        let document = async_graphql_parser::parse_query(query)
            .map_err(|error| Problem::new(error.to_string()))?;
        let operation = match document.operations {
            DocumentOperations::Single(operation) => operation.node,
            DocumentOperations::Multiple(mut all) => {
                let chosen = match name {
                    Some(name) => all.remove(name),
                    None if all.len() == 1 => all.into_values().next(),
                    None => {
                        return Err(Problem::new(
                            "there are several operations: say which by `operationName`",
                        ));
                    }
                };
                chosen
                    .ok_or_else(|| Problem::new("there is no operation of that name"))?
                    .node
            }
        };
        if operation.ty != OperationType::Query {
            return Err(Problem::new("there are only queries here"));
        }
        refuse(&operation.directives)?;
        let mut variables = HashMap::new();
        for definition in operation.variable_definitions {
            let definition = definition.node;
            let name = definition.name.node.clone();
            let value = match given.get(name.as_str()) {
                Some(value) => ConstValue::from_json(value.clone())
                    .map_err(|error| Problem::new(error.to_string()))?,
                None => definition.default_value().cloned().unwrap_or_default(),
            };
            if value == ConstValue::Null && !definition.var_type.node.nullable {
                return Err(Problem::new(format!("variable ${name} has no value")));
            }
            variables.insert(name, value);
        }
        Ok(Self {
            selection: operation.selection_set.node,
            fragments: document.fragments,
            variables,
        })
    }

    /// The fields of the operation.
    pub(super) fn fields(&self) -> Result<Vec<&Field>, Problem> {
        self.fields_of(&self.selection)
    }

    /// The fields of a selection, with those of its fragments.
    pub(super) fn fields_of<'d>(
        &'d self,
        set: &'d SelectionSet,
    ) -> Result<Vec<&'d Field>, Problem> {
        let mut found = Vec::new();
        self.collect(set, MAX_DEPTH, &mut found)?;
        if found.is_empty() {
            return Err(Problem::new("nothing is selected of it"));
        }
        Ok(found)
    }

    fn collect<'d>(
        &'d self,
        set: &'d SelectionSet,
        depth: usize,
        found: &mut Vec<&'d Field>,
    ) -> Result<(), Problem> {
        for item in &set.items {
            refuse(item.node.directives())?;
            let inner = match &item.node {
                Selection::Field(field) => {
                    found.push(&field.node);
                    if found.len() > MAX_FIELDS {
                        return Err(Problem::new(format!("more than {MAX_FIELDS} fields")));
                    }
                    continue;
                }
                Selection::InlineFragment(fragment) => &fragment.node.selection_set.node,
                Selection::FragmentSpread(spread) => {
                    let name = &spread.node.fragment_name.node;
                    let fragment = self.fragments.get(name);
                    let missing = || Problem::new(format!("there is no fragment {name}"));
                    &fragment.ok_or_else(missing)?.node.selection_set.node
                }
            };
            let depth = depth
                .checked_sub(1)
                .ok_or_else(|| Problem::new("fragments within too many fragments"))?;
            self.collect(inner, depth, found)?;
        }
        Ok(())
    }

    /// The arguments of a field, which are some of `known`; null is as if it were not there.
    pub(super) fn arguments(
        &self,
        field: &Field,
        known: &[&str],
    ) -> Result<HashMap<String, ConstValue>, Problem> {
        let mut found = HashMap::new();
        for (name, value) in &field.arguments {
            let name = name.node.as_str();
            if !known.contains(&name) {
                return Err(Problem::new(format!(
                    "unknown argument {name}; there are: {}",
                    known.join(", ")
                )));
            }
            let value = self.value(&value.node)?;
            if value != ConstValue::Null {
                found.insert(name.to_owned(), value);
            }
        }
        Ok(found)
    }

    fn value(&self, value: &Value) -> Result<ConstValue, Problem> {
        value.clone().into_const_with(|name| {
            let found = self.variables.get(&name).cloned();
            found.ok_or_else(|| Problem::new(format!("variable ${name} is not declared")))
        })
    }
}

/// Directives are none of ours.
fn refuse(
    directives: &[Positioned<async_graphql_parser::types::Directive>],
) -> Result<(), Problem> {
    match directives.first() {
        Some(directive) => Err(Problem::new(format!(
            "directive @{} is not known here",
            directive.node.name.node
        ))),
        None => Ok(()),
    }
}

/// An object of the answer, in the order of the query.
#[derive(Debug, Default)]
pub(super) struct Object(IndexMap<Name, ConstValue>);

impl Object {
    /// Answers each field by `answer`. `__typename` is answered here.
    pub(super) fn of(
        fields: Vec<&Field>,
        name: &str,
        mut answer: impl FnMut(&Field) -> Result<ConstValue, Problem>,
    ) -> Result<ConstValue, Problem> {
        let mut object = Self::default();
        for field in fields {
            let key = &field.response_key().node;
            let value = if field.name.node == "__typename" {
                ConstValue::String(name.to_owned())
            } else {
                answer(field).map_err(|problem| problem.within(key.as_str()))?
            };
            if let Some(other) = object.0.insert(key.clone(), value)
                && object.0.get(key) != Some(&other)
            {
                let problem = Problem::new("is selected twice: give one of them an alias");
                return Err(problem.within(key.as_str()));
            }
        }
        Ok(ConstValue::Object(object.0))
    }
}

/// An error about a field that there is not.
pub(super) fn unknown(field: &Field, of: &str, known: &str) -> Problem {
    Problem::new(format!(
        "unknown field {} of {of}; there are: {known}",
        field.name.node
    ))
}

/// A field that has no fields of its own.
pub(super) fn leaf(field: &Field) -> Result<(), Problem> {
    if field.selection_set.node.items.is_empty() {
        Ok(())
    } else {
        Err(Problem::new("has no fields of its own"))
    }
}
