// Package artifact reads API definitions: projects of apictl (a folder or a zip) and OpenAPI documents (2.0, 3.0 and 3.1,
// in YAML or JSON), into the definitions that the proxy serves. Every fault is reported with file, line, key and what
// would be right, all at once; a definition with a fault is not deployed.
//
// Where the files of a project disagree, api.yaml wins over the extensions of the OpenAPI document, and an operation over
// its path, and that over the API. What a definition asks for and this release cannot do falls into three kinds:
//
//   - what would change who may call, or what the backend is given (interceptors, operation policies, other kinds of
//     endpoint security, mocks), is a fault: the API is not deployed;
//   - operations that accept only credentials of kinds that cannot be checked (digest, API keys in a cookie) stay deployed
//     and refuse every request (definition.Operation.Unavailable), so that the rest of their API works;
//   - what has no bearing on either (response cache, connection pools, Envoy's limits) is a note.
package artifact
