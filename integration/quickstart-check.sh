#!/bin/sh
# Runs "gatehouse quickstart" and holds it to what it prints: every line is run by this shell and its status, its fault
# code and the text that it must show are compared with the answer printed beside it, and what the backend and the traffic
# manager counted is compared with what was admitted.
#
#   integration/quickstart-check.sh [--event-hub amqp://user:password@host:port/vhost]
#
# GATEHOUSE names the binary (bin/gatehouse). Needs curl and a POSIX shell; ports are free ones.
set -eu

gatehouse=${GATEHOUSE:-$(dirname "$0")/../bin/gatehouse}
ready_within=20 # seconds

fail() {
	echo "quickstart-check: $*" >&2
	exit 1
}

[ -x "$gatehouse" ] || fail "$gatehouse is missing: build it with \"make build\", or name one in GATEHOUSE"
command -v curl >/dev/null || fail "curl is missing: install it"

work=$(mktemp -d)
pid=
cleanup() {
	status=$?
	trap - EXIT INT TERM
	if [ -n "$pid" ] && kill "$pid" 2>/dev/null; then
		wait "$pid" 2>/dev/null || true
	fi
	rm -rf "$work"
	exit "$status"
}
trap cleanup EXIT INT TERM

: >"$work/out"
"$gatehouse" quickstart --http 127.0.0.1:0 --admin 127.0.0.1:0 --api-manager 127.0.0.1:0 --output json "$@" \
	>"$work/out" 2>"$work/err" &
pid=$!

waited=0
until grep -q '^}' "$work/out"; do
	kill -0 "$pid" 2>/dev/null || { cat "$work/err" >&2; pid=; fail "the quickstart ended before it was ready"; }
	[ "$waited" -lt $((ready_within * 10)) ] || { cat "$work/err" >&2; fail "not ready within $ready_within s"; }
	sleep 0.1
	waited=$((waited + 1))
done

# value NAME: a text or number of the printed object; the names that are asked for stand in it once.
value() {
	sed -n 's/^  "'"$1"'": "\{0,1\}\([^",]*\)"\{0,1\},\{0,1\}$/\1/p' "$work/out"
}

counters=$(value counters)
[ -n "$counters" ] || fail "no counters in the output"

# The steps, one a line, with tabs between: group, title, command, status, code, the text that is shown ("-" for none) and
# seconds. A command holds no quote and no backslash that JSON would escape.
sed -n '/^  "steps"/,$p' "$work/out" | sed -n '
	s/^      "group": "\(.*\)",$/\1/;t group
	s/^      "title": "\(.*\)",$/\1/;t title
	s/^      "command": "\(.*\)",$/\1/;t command
	s/^      "status": \(.*\),$/\1/;t status
	s/^      "code": \(.*\),$/\1/;t code
	s/^      "shows": "\(.*\)",$/-\1/;t code
	s/^      "within_seconds": \(.*\),$/\1/;t within
	b
	:group
	h;b
	:title
	H;b
	:command
	H;b
	:status
	H;b
	:code
	H;b
	:within
	H;x;s/\n/	/g;p
' >"$work/steps"

total=$(wc -l <"$work/steps")
[ "$total" -ge 40 ] || fail "only $total steps were printed"

# run COMMAND STATUS: runs a printed line, and sets status and code to what it got. Where the wanted status is none of HTTP, it
# is the exit status of the whole line.
run() {
	: >"$work/body"
	if [ "$2" -lt 100 ]; then
		code=0
		status=0
		eval "$1" >"$work/body" 2>&1 || status=$?
		return
	fi
	status=$(eval "$1 -o '$work/body' -w '%{http_code}'") || status="curl ended with $?"
	code=0
	case $status in
	4* | 5*)
		code=$(sed -n 's/.*"code"[ ]*:[ ]*"\{0,1\}\([0-9]\{6\}\).*/\1/p' "$work/body" | head -n 1)
		code=${code:-0}
		;;
	esac
}

admitted=0
wrong=0
done_steps=0
last_group=
tab=$(printf '\t')
while IFS="$tab" read -r group title command want_status want_code shows within; do
	if [ "$group" != "$last_group" ]; then
		printf '%s\n' "$group"
		last_group=$group
	fi
	case $command in
	*/emulator/*) steers=yes ;;
	curl*) steers=no ;;
	*) steers=yes ;;
	esac
	tries=0
	while :; do
		run "$command" "$want_status"
		if [ "$steers" = no ] && { [ "$status" = 200 ] || [ "$status" = 0 ]; }; then
			admitted=$((admitted + 1))
		fi
		if [ "$status" = "$want_status" ] && [ "$code" = "$want_code" ] && grep -qF -e "${shows#-}" "$work/body"; then
			printf '  ok    %s %s  %s\n' "$status" "$code" "$title"
			break
		fi
		# The gateway has the printed second to follow a change; a try takes at least a twentieth of one.
		if [ "$within" = 0 ] || [ "$tries" -ge $((within * 20)) ]; then
			printf '  FAIL  got %s %s, printed was %s %s %s: %s\n        %s\n' \
				"$status" "$code" "$want_status" "$want_code" "${shows#-}" "$title" "$command"
			wrong=$((wrong + 1))
			break
		fi
		tries=$((tries + 1))
		sleep 0.05
	done
	done_steps=$((done_steps + 1))
done <"$work/steps"

[ "$done_steps" = "$total" ] || fail "ran $done_steps of $total steps"
[ "$wrong" = 0 ] || fail "$wrong of $total lines were answered otherwise than printed"

# count MEMBER NAME: a number of an object in the counters.
count() {
	sed -n 's/.*"'"$1"'":{"'"$2"'":\([0-9]*\).*/\1/p' "$work/counters"
}

tries=0
while :; do
	curl -sk "$counters" >"$work/counters"
	backend=$(count backend requests)
	events=$(count traffic_manager events)
	if [ "$backend" = "$admitted" ] && [ "$events" = "$admitted" ]; then
		break
	fi
	[ "$tries" -lt 50 ] || fail "admitted $admitted requests, but the backend counted $backend and the traffic manager $events"
	tries=$((tries + 1))
	sleep 0.1
done
echo "$total lines were answered as printed; $admitted admitted requests, as many at the backend and at the traffic manager"
