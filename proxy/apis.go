package proxy

import (
	"cmp"
	"slices"

	"gatehouse/proxy/definition"
)

// APIs returns the definitions that are served, by context and version; variants of a definition are in it. They are shared
// and must not be changed.
func (p *Proxy) APIs() []*definition.API {
	g := p.generation.Load()
	list := make([]*definition.API, 0, len(g.apis))
	for _, a := range g.apis {
		if a.key == a.id {
			list = append(list, a.def)
		}
	}
	slices.SortFunc(list, func(a, b *definition.API) int {
		return cmp.Or(cmp.Compare(a.Context, b.Context), cmp.Compare(a.Version, b.Version), cmp.Compare(a.UUID, b.UUID))
	})
	return list
}
