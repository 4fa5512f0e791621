#!/bin/sh
# Makes sure that a RabbitMQ server is installed: uses the one that is there, installs Debian's as root, or says in one
# line what to install. The tests start a node of their own; the package's service is not started.
set -eu
if [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null 2>&1; then
	exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
	echo "installing rabbitmq-server" >&2
	# Keep the package from starting its own service.
	policy=/usr/sbin/policy-rc.d
	made=
	if [ ! -e "$policy" ]; then
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
		made=1
	fi
	status=0
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends rabbitmq-server; } >&2 || status=$?
	[ -z "$made" ] || rm -f "$policy"
	exit "$status"
fi
echo "rabbitmq-server is missing: install it (Debian: apt-get install rabbitmq-server); no service needs to run" >&2
exit 1
