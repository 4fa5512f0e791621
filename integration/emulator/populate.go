package emulator

import (
	"fmt"
	"strconv"
	"strings"
)

// Generated is a large data set that is worked out row by row, so that a million rows take no memory here. Its ids begin
// above every id of the database. A nil one is empty.
type Generated struct {
	Subscriptions, Mappings, Apps, APIs int
	environment                         string
	keyManager                          string
}

// idBase is where the ids of generated rows begin.
const idBase = 1_000_000

// Populate adds generated rows behind those of the database: subscription i binds application i mod apps to API
// (i / apps) mod apis, key mapping i belongs to application i mod apps. They are deployed on the environment Default, have
// no artifacts and never change. Calling it again replaces them.
func (e *Emulator) Populate(subscriptions, mappings, apps, apis int) (*Generated, error) {
	if subscriptions < 0 || mappings < 0 || apps < 0 || apis < 0 || subscriptions > apps*apis || mappings > 0 && apps == 0 {
		return nil, fmt.Errorf("populate with %d subscriptions, %d mappings, %d applications, %d APIs: at most applications × APIs subscriptions, and none negative",
			subscriptions, mappings, apps, apis)
	}
	g := &Generated{subscriptions, mappings, apps, apis, "Default", e.profile.residentName}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.gen = g
	return g, nil
}

func genUUID(kind byte, i int) string { return fmt.Sprintf("9%c000000-0000-4000-8000-%012d", kind, i) }

func appendGenUUID(b []byte, kind byte, i int) []byte {
	b = append(b, '9', kind)
	b = append(b, "000000-0000-4000-8000-"...)
	return appendPadded(b, i, 12)
}

func appendPadded(b []byte, i, width int) []byte {
	var digits [20]byte
	d := strconv.AppendInt(digits[:0], int64(i), 10)
	for range width - len(d) {
		b = append(b, '0')
	}
	return append(b, d...)
}

// API is the API i.
func (g *Generated) API(i int) API {
	return API{
		UUID: genUUID('a', i), APIID: idBase + int64(i), Provider: "admin", Name: "Gen" + strconv.Itoa(i), Version: "1.0.0",
		Context: "/gen/" + strconv.Itoa(i) + "/1.0.0", APIType: "HTTP", Status: "PUBLISHED", Organization: SuperTenant,
		URLMappings: []URLMapping{{"Any", "Unlimited", "GET", "/*", []string{}}}, APIPolicies: []any{},
	}
}

func (g *Generated) appendAPI(b []byte, i int) []byte {
	b = append(b, `{"uuid":"`...)
	b = appendGenUUID(b, 'a', i)
	b = append(b, `","apiId":`...)
	b = strconv.AppendInt(b, idBase+int64(i), 10)
	b = append(b, `,"provider":"admin","name":"Gen`...)
	b = strconv.AppendInt(b, int64(i), 10)
	b = append(b, `","version":"1.0.0","context":"/gen/`...)
	b = strconv.AppendInt(b, int64(i), 10)
	return append(b, `/1.0.0","policy":null,"apiType":"HTTP","status":"PUBLISHED","isDefaultVersion":false,"organization":"carbon.super",`+
		`"urlMappings":[{"authScheme":"Any","throttlingPolicy":"Unlimited","httpMethod":"GET","urlPattern":"/*","scopes":[]}],"apiPolicies":[]}`...)
}

// Application is the application i.
func (g *Generated) Application(i int) Application {
	return Application{
		UUID: genUUID('b', i), ID: idBase + int64(i), Name: "GenApp" + strconv.Itoa(i), SubName: "dev" + strconv.Itoa(i%1000), Policy: "Unlimited",
		TokenType: "JWT", GroupIDs: []GroupID{}, Attributes: map[string]string{}, Organization: SuperTenant,
	}
}

func (g *Generated) appendApplication(b []byte, i int) []byte {
	b = append(b, `{"uuid":"`...)
	b = appendGenUUID(b, 'b', i)
	b = append(b, `","id":`...)
	b = strconv.AppendInt(b, idBase+int64(i), 10)
	b = append(b, `,"name":"GenApp`...)
	b = strconv.AppendInt(b, int64(i), 10)
	b = append(b, `","subName":"dev`...)
	b = strconv.AppendInt(b, int64(i%1000), 10)
	return append(b, `","policy":"Unlimited","tokenType":"JWT","groupIds":[],"attributes":{},"organization":"carbon.super"}`...)
}

// ConsumerKey is the consumer key of key mapping i.
func (g *Generated) ConsumerKey(i int) string { return "genKey" + string(appendPadded(nil, i, 22)) }

// KeyMapping is the key mapping i.
func (g *Generated) KeyMapping(i int) KeyMapping {
	app := i % g.Apps
	return KeyMapping{
		ApplicationID: idBase + int64(app), ApplicationUUID: genUUID('b', app), ConsumerKey: g.ConsumerKey(i), KeyType: g.keyType(i),
		KeyManager: g.keyManager, Tenant: SuperTenant,
	}
}

// keyType gives every other key of an application to the sandbox.
func (g *Generated) keyType(i int) string {
	if (i/g.Apps)%2 == 1 {
		return "SANDBOX"
	}
	return "PRODUCTION"
}

func (g *Generated) appendKeyMapping(b []byte, i int) []byte {
	app := i % g.Apps
	b = append(b, `{"applicationId":`...)
	b = strconv.AppendInt(b, idBase+int64(app), 10)
	b = append(b, `,"applicationUUID":"`...)
	b = appendGenUUID(b, 'b', app)
	b = append(b, `","consumerKey":"genKey`...)
	b = appendPadded(b, i, 22)
	b = append(b, `","keyType":"`...)
	b = append(b, g.keyType(i)...)
	b = append(b, `","keyManager":"`...)
	b = append(b, g.keyManager...)
	return append(b, `"}`...)
}

// Subscription is the subscription i.
func (g *Generated) Subscription(i int) Subscription {
	app, api := i%g.Apps, (i/g.Apps)%g.APIs
	return Subscription{
		SubscriptionUUID: genUUID('c', i), SubscriptionID: idBase + int64(i), PolicyID: "Unlimited", APIUUID: genUUID('a', api), APIID: idBase + int64(api),
		ApplicationUUID: genUUID('b', app), AppID: idBase + int64(app), SubscriptionState: "UNBLOCKED", Tenant: SuperTenant,
	}
}

func (g *Generated) appendSubscription(b []byte, i int) []byte {
	app, api := i%g.Apps, (i/g.Apps)%g.APIs
	b = append(b, `{"subscriptionUUID":"`...)
	b = appendGenUUID(b, 'c', i)
	b = append(b, `","subscriptionId":`...)
	b = strconv.AppendInt(b, idBase+int64(i), 10)
	b = append(b, `,"policyId":"Unlimited","apiUUID":"`...)
	b = appendGenUUID(b, 'a', api)
	b = append(b, `","apiId":`...)
	b = strconv.AppendInt(b, idBase+int64(api), 10)
	b = append(b, `,"applicationUUID":"`...)
	b = appendGenUUID(b, 'b', app)
	b = append(b, `","appId":`...)
	b = strconv.AppendInt(b, idBase+int64(app), 10)
	return append(b, `,"subscriptionState":"UNBLOCKED"}`...)
}

// one is the range of a single row that the filter found, or none.
func one(i, n int, found bool) (int, int) {
	if !found || i < 0 || i >= n {
		return 0, 0
	}
	return i, i + 1
}

func genIndex(uuid string, kind byte) (int, bool) {
	rest, ok := strings.CutPrefix(uuid, "9"+string(kind)+"000000-0000-4000-8000-")
	i, err := strconv.Atoi(rest)
	return i, ok && err == nil
}

func genID(text string) (int, bool) {
	i, err := strconv.Atoi(text)
	return i - idBase, err == nil && i >= idBase
}

func (g *Generated) apis(uuid, context, version, label string) (from, to int) {
	switch {
	case g == nil || label != "" && label != g.environment || version != "" && version != "1.0.0":
		return 0, 0
	case uuid != "":
		i, ok := genIndex(uuid, 'a')
		return one(i, g.APIs, ok)
	case context != "":
		rest, ok := strings.CutPrefix(context, "/gen/")
		i, err := strconv.Atoi(strings.TrimSuffix(rest, "/1.0.0"))
		return one(i, g.APIs, ok && err == nil)
	}
	return 0, g.APIs
}

func (g *Generated) applications(id string) (from, to int) {
	switch {
	case g == nil:
		return 0, 0
	case id != "":
		i, ok := genID(id)
		return one(i, g.Apps, ok)
	}
	return 0, g.Apps
}

func (g *Generated) mappings(key, manager string) (from, to int) {
	switch {
	case g == nil || manager != "" && manager != g.keyManager:
		return 0, 0
	case key != "":
		rest, ok := strings.CutPrefix(key, "genKey")
		i, err := strconv.Atoi(rest)
		return one(i, g.Mappings, ok && err == nil)
	}
	return 0, g.Mappings
}

// subscriptions gives the rows that a filter picks; all says that it picks every one.
func (g *Generated) subscriptions(apiID, appID, apiUUID, appUUID string) (picked []int, all bool) {
	if g == nil || g.Subscriptions == 0 {
		return nil, false
	}
	if apiID+appID+apiUUID+appUUID == "" {
		return nil, true
	}
	resolve := func(id, uuid string, kind byte) (int, bool) { // -1 for any
		i := -1
		if id != "" {
			n, ok := genID(id)
			if !ok {
				return 0, false
			}
			i = n
		}
		if uuid != "" {
			n, ok := genIndex(uuid, kind)
			if !ok || i >= 0 && i != n {
				return 0, false
			}
			i = n
		}
		return i, true
	}
	api, ok1 := resolve(apiID, apiUUID, 'a')
	app, ok2 := resolve(appID, appUUID, 'b')
	if !ok1 || !ok2 || api >= g.APIs || app >= g.Apps {
		return nil, false
	}
	apis, apps := span(api, g.APIs), span(app, g.Apps)
	for a := apis[0]; a < apis[1]; a++ {
		for p := apps[0]; p < apps[1]; p++ {
			if i := a*g.Apps + p; i < g.Subscriptions {
				picked = append(picked, i)
			}
		}
	}
	return picked, false
}

func span(i, n int) [2]int {
	if i < 0 {
		return [2]int{0, n}
	}
	return [2]int{i, i + 1}
}
