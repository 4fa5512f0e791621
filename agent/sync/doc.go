// Package sync keeps the gateway's domains in step with the API Manager: it brings together the lists that the API Manager
// serves and the events that its event hub sends, and turns both into rows of the domains.
//
// # The problem
//
// The event hub keeps nothing for a gateway that is away, promises no order, repeats messages and drops some. The lists
// are whole, but each takes a while, and what changes meanwhile is not in them. Neither is enough by itself. The goal:
// whatever happens to connections and messages, a moment after all is well again every row equals the API Manager's, and
// in between nothing older ever replaces something newer.
//
// # The algorithm
//
// On every connect of an event source, the first as well as every later one, and on every gap that a source reports:
//
//	subscribe (the source has done so before it reports Connected)
//	  → fetch every list of the topics concerned, each on its own
//	  → apply it, but leave what an event has told since the request began
//	  → live
//
// A reconnect without a full fetch would be a bug: what was published in between is gone. At the start the same happens;
// when the event hub is not there, the lists are fetched all the same and the gateway is ready, though degraded.
//
// Events are not held up while a list is on its way. They are applied at once, so a deny policy works within
// milliseconds also during a long fetch, and they are replayed over the list when it comes: for each entity the ledger
// knows the time stamp of the last event, and an entity whose last event is newer than the start of the list's request
// keeps the event's state (pull.finish, dataset.resolve). A deletion leaves a tombstone, which is an entry of the ledger too,
// so neither a list from before nor an update that was overtaken brings the row back.
//
// # What decides between two facts
//
// Times are the API Manager's. Its clock is known to us from the header Date of its answers, to about a second, which
// gives every request a window instead of a moment (clock.go). Then, for an event of time t (ledger.go):
//
//	fresh  nothing as new is known of the entity          → apply
//	equal  the last event has the same time               → apply, except ON_HOLD over UNBLOCKED
//	stale  a newer event was applied                      → drop, count
//	late   older than the last list or row that was asked for, and no newer event is known
//	                                                      → drop, but if it would change something, ask
//
// To ask (ask.go) is to read that one row from the API Manager, or where there is no such call, its list, soon. The same
// is done whenever the window does not tell which of list and event is newer. So a wrong guess about clocks costs a
// request, not a wrong row. Questions are collected per entity, bounded, and repeated when an event overtakes the answer.
//
// # Who does what
//
//	source    one per event source. Decodes in the source's goroutine, applies throttle decisions at once, puts
//	          everything else into the inbox of its worker. Bounded in events and in bytes: an overflow drops the backlog and
//	          makes the lists due
//	worker    one per group of kinds: APIs and artifacts, applications, key mappings, subscriptions, policies, key
//	          managers, deny policies and key templates, revocations, scopes, API keys. Its goroutine alone changes the tables of the group:
//	          events, pieces of lists, answers to questions. Groups never wait for one another
//	          A panic over one of these fails that one, is counted, and makes the list due; nothing else stops
//	kind      one per list. Its goroutine alone fetches the list; knows when it is due, retries for ever
//	dataset   a table with its ledger, in the hands of its worker. API keys that are no JWTs have no list: see apikeys.go
//
// States of a kind: due → fetching → applied, failed (due again: within a second when the API Manager cannot be reached,
// 1 to 15 s on 5xx, a minute on refused credentials) or held back. A list that is empty where rows are held, or has lost
// more than half of them, looks like an API Manager that is just starting; it is held back until a second one says the same
// (confirm.go). A failed list replaces nothing, and other kinds go on. A connect of the event hub, Resync, and every ten
// minutes the slow resync make lists due; requests while one is being fetched make it run once more afterwards. Gaps are
// the exception: a gateway reports them because it is too slow, so a list that only a gap asks for waits, after one that was
// fetched, for as long as that took.
//
// Deployed APIs are a data set like the others, of projects in place of rows: a DEPLOY event is a question about
// that API whose answer is its project, REMOVE is a deletion (deploy.go). A definition that cannot be read leaves the
// version before in force. The routes are set anew when the APIs' worker has nothing left to do.
//
// # Beside it
//
// Fetch reads what a request missed in memory (fetch.go). Snapshots keep everything on disk, so that a restart serves
// while the API Manager is down (persist.go). Registration and reports are in register.go, State and Checks in
// state.go, the feed of changes in changes.go. Translation from wire to domain happens in translate.go and nowhere else.
package sync
